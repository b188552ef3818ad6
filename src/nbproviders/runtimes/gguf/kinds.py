"""What a file that is no GGUF file seems to be, by its first bytes."""

from __future__ import annotations

# Beginnings of files that people hold for models, and what to call them.
_BEGINNINGS = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file it points to; run `git lfs pull`",
    b"PK\x03\x04": "it looks like a zip archive or a PyTorch checkpoint",
    b"\x80": "it looks like a Python pickle, perhaps an old PyTorch checkpoint",
    b"\x89HDF": "it looks like an HDF5 file",
    b"\x1f\x8b": "it is compressed with gzip; decompress it first",
    b"tjgg": "it is of llama.cpp's old format GGJT; convert the model again",
    b"lmgg": "it is of llama.cpp's old format GGML; convert the model again",
    b"fmgg": "it is of llama.cpp's old format GGMF; convert the model again",
    b"algg": "it is a LoRA adapter of llama.cpp's old format; convert it again",
    b"FUGG": "it is a GGUF file with its bytes swapped",
    b"{": "it looks like JSON",
}


def looks_like(start: bytes) -> str:
    """Return what a file seems to be.

    Parameters
    ----------
    start
        Its first 512 bytes, or all of them.
    """
    if not start:
        return "it is empty"
    if not start.strip(b"\x00"):
        return "it begins with zeros, as a download that was never filled does"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, perhaps the site's error or login page"
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") < 100_000_000:
        return "it looks like safetensors"
    for beginning, name in _BEGINNINGS.items():
        if start.startswith(beginning):
            return name
    return f"it begins with {start[:4]!r}, not with b'GGUF'"
