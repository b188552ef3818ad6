"""The magic ``%nbproviders``: ``%load_ext nbproviders``, then ``%nbproviders nest`` and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbproviders.errors import ConfigurationError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magic; IPython calls this for ``%load_ext nbproviders``."""
    # Its stub wraps a plain method as a decorator; the call is IPython's documented one.
    register: Any = shell.register_magic_function
    register(magic, magic_kind="line", magic_name="nbproviders")


def magic(line: str) -> Any:
    """Run ``%nbproviders nest | residents | unload``.

    ``nest`` lets ``asyncio.run`` work inside a cell, for notes and libraries that need it. Nothing of
    nbproviders does.

    Raises
    ------
    ConfigurationError
        For any other word.
    """
    from nbproviders import session

    word = line.strip()
    if word == "nest":
        import nest_asyncio2

        nest_asyncio2.apply()
        return None
    if word == "residents":
        return session.residents()
    if word == "unload":
        return session.unload_all()
    raise ConfigurationError(
        f"%nbproviders does not know {word!r}.", hint="Say nest, residents or unload."
    )
