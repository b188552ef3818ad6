"""What people click on in a notebook. Widgets import ipywidgets, so nothing else imports them."""
