"""Things that run: a loaded library object or an open wire, as a `Model`. One SDK each, imported late."""
