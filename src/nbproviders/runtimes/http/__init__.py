"""The wire to services: `Wire` sends requests to one base URL, reads answers and streams, says what failed.

Here is what HTTP knows: connections, timeouts, limits, server-sent events, and which of our errors a status
or a broken connection is. What the words of a service mean is for its provider to know. Nothing is retried
here, and neither bodies nor headers are logged.
"""

from nbproviders.runtimes.http.events import Event
from nbproviders.runtimes.http.wire import Wire

__all__ = ["Event", "Wire"]
