"""Servers as child processes: started on a free port, watched, shared, and never left behind.

Each server has a guardian, a small process between it and the kernel. The guardian holds one end of a
socket whose other end only the kernel has, so it learns of the kernel's death however that came about, and
ends the server's whole process group. It also drains the output, checks keys where a server cannot, and is
what a kept server lives on with. `server` is where a provider begins.
"""
