"""GGUF models by llama.cpp, through the C functions that llama-cpp-python brings.

llama.cpp ends the process where Python would raise: two threads in one context, a call after closing, a file
that breaks a rule. So everything here runs on one thread for each model, pointers never leave these modules,
and files are checked before (`nbproviders.runtimes.gguf`).
"""
