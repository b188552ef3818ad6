"""GGUF files before native code sees them: what they hold, what they need, and whether they are sound.

`header` reads, `memory` counts bytes, `check` names what is unusual, `trial` lets a child process load
what is. None of them imports llama.cpp into this process.
"""
