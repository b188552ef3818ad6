"""Ollama's own protocol (https://docs.ollama.com/api): names, bodies to send, and what answers mean.

Pure functions over texts and JSON values, without I/O; `nbproviders.providers.ollama` sends and reads.
"""
