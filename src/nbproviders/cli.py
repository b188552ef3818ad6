"""The command ``nbproviders``: ``demo``, ``lab``, ``list``, ``stop``, ``doctor``, ``new-provider``.

Tables go to stdout, progress and errors to stderr; an error is its message, what to do, and exit code 1.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbproviders import __version__, demo, kit
from nbproviders.catalog.services import SERVICES, Service
from nbproviders.core import engine
from nbproviders.errors import ConfigurationError, ProviderError

if TYPE_CHECKING:
    from nbproviders.catalog.keys import Location
    from nbproviders.catalog.local import LocalModel
    from nbproviders.comparison.comparison import Comparison
    from nbproviders.registry import ProviderInfo
    from nbproviders.runtimes.process.keeping import Kept

REPORT = "nbproviders-demo.html"
QUICKSTART = "01_quickstart.ipynb"
_COLUMNS = 80
_MINUTES_FROM_S = 120
_INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    arguments
        Without the program's name; by default the process's own.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a model says, or a path, may hold what the terminal's encoding has not.
            stream.reconfigure(errors="backslashreplace")
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.run is not _lab:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        code: int = options.run(options, rest)
        sys.stdout.flush()
    except ProviderError as error:
        print(f"nbproviders: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbproviders", description="Pick a model, keep it resident, compare models."
    )
    parser.add_argument("--version", action="version", version=f"nbproviders {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        # Abbreviations would swallow what is meant for JupyterLab.
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    shown = command("demo", _demo, "Compare the three shipped models; no network, no key.")
    shown.add_argument(
        "--html", type=Path, default=Path(REPORT), metavar="PATH", help=f"report ({REPORT})"
    )
    shown.add_argument("--n", type=_positive, default=10, help="prompts of each task (10)")
    lab = command("lab", _lab, "Copy the shipped notebooks here and open them in JupyterLab.")
    lab.add_argument("--no-open-browser", action="store_true", help="only start the server")
    lab.epilog = "Further arguments go to JupyterLab, such as --port 8890."
    command("list", _list, "Show providers, keys, and the models found on this machine.")
    kit.add_command(commands)
    command("doctor", _doctor, "Look for what keeps a provider from working, and say what to do.")
    ended = command("stop", _stop, "End servers that were kept running.")
    which = ended.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "server", nargs="?", metavar="REFERENCE|PROCESS", help="as `nbproviders list` shows it"
    )
    which.add_argument("--all", action="store_true", help="end all of them")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 1")
    return int(text)


def _demo(options: argparse.Namespace, _: Sequence[str]) -> int:
    from nbproviders.comparison.run import compare_sync
    from nbproviders.comparison.scorers import exact_match

    _require_transformers()
    report = _writable(options.html)
    tasks = demo.tasks(options.n)
    engine.default()  # before anything is said: no Ctrl-C is to fall into the making of its loop
    models = [f"transformers:{name}" for name in demo.MODELS]
    print(f"Asking {', '.join(demo.MODELS)} {len(tasks)} prompts each …", flush=True)
    result = compare_sync(models, tasks, scorers=exact_match, progress=sys.stderr.isatty())
    print(f"\n{_overall(result)}\n\nExactly right, by task\n{_by_task(result)}\n")
    result.to_html(report)
    print(f"The whole comparison, to open in a browser: {report}")
    return 0


def _require_transformers() -> None:
    from nbproviders import registry

    info = registry.list_available()["transformers"]
    if not info.available:
        reason = info.reason.partition(":")[0]
        raise ConfigurationError(
            f"The demo models need packages that are not here: {reason}.",
            hint='Install them: pip install "nbproviders[transformers]"; '
            'in a checkout: pip install -c constraints.txt -e ".[local]"',
        )


def _writable(path: Path) -> Path:
    """Return the full path of a file to write, found fault with before the work and not after it."""
    full = path.expanduser().absolute()
    if full.is_dir() or not full.parent.is_dir() or not os.access(full.parent, os.W_OK):
        wrong = "is a folder" if full.is_dir() else "cannot be written there"
        raise ConfigurationError(
            f"The report {str(path)!r} {wrong}.", hint="Name a file in a folder: --html PATH."
        )
    return full


def _overall(result: Comparison) -> str:
    lines = result.as_text(width=_COLUMNS).splitlines()
    # The table fits as it is; a note beside it may be longer.
    return "\n".join(
        line if len(line) <= _COLUMNS else textwrap.fill(line, _COLUMNS) for line in lines
    )


def _by_task(result: Comparison) -> str:
    shares: dict[str, list[str]] = {}
    for row in result.summary(by="task").to_dict("records"):
        shares.setdefault(str(row["task"]), []).append(f"{row['exact_match']:.0%}".rjust(7))
    heads = ("task", *(name.rjust(7) for name in demo.MODELS))
    return _columns([heads, *((task, *found) for task, found in shares.items())])


def _lab(options: argparse.Namespace, rest: Sequence[str]) -> int:
    if importlib.util.find_spec("jupyterlab") is None:
        raise ConfigurationError(
            "JupyterLab is not installed here.",
            hint='Install it: pip install "nbproviders[lab]"',
        )
    for line in _copy_notebooks(_notebooks(), Path.cwd()):
        print(line)
    command = [sys.executable, "-m", "jupyterlab", *rest]
    if not any(name.endswith(".ipynb") or Path(name).exists() for name in rest):
        command.append(QUICKSTART)
    if options.no_open_browser:
        command.append("--no-browser")
    sys.stdout.flush()
    return _follow(command)


def _notebooks() -> list[Path]:
    """Return the shipped notebooks: in the package, or beside the source tree in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "notebooks", package.parents[1] / "notebooks"):
        found = sorted(folder.glob("*.ipynb"))
        if found:
            return found
    raise ConfigurationError(
        "The notebooks are not in this installation.", hint="Install nbproviders again."
    )


def _copy_notebooks(notebooks: Iterable[Path], folder: Path) -> list[str]:
    """Copy notebooks that are not there yet, and return what was done, a line each."""
    lines = []
    for source in notebooks:
        target = folder / source.name
        try:
            with source.open("rb") as read, target.open("xb") as write:
                shutil.copyfileobj(read, write)
        except FileExistsError:
            if not target.is_file() or target.read_bytes() != source.read_bytes():
                lines.append(f"kept    {source.name}: yours differs; rename it to get a fresh one")
            else:
                lines.append(f"there   {source.name}")
        except OSError as error:
            raise ConfigurationError(
                f"{target} cannot be written: {error.strerror}",
                hint="Go to a folder of your own and run `nbproviders lab` there.",
            ) from None
        else:
            lines.append(f"copied  {source.name}")
    return lines


def _follow(command: list[str]) -> int:
    """Run a program to its end and return its exit code. Ctrl-C is its own: JupyterLab asks first."""
    with subprocess.Popen(command) as process:
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                continue
            return _INTERRUPTED if code < 0 else code


def _list(*_: Any) -> int:
    from nbproviders import registry
    from nbproviders.catalog import local
    from nbproviders.residency.memory import size_text

    providers = registry.list_available()
    print("Providers")
    own = {name: info for name, info in providers.items() if name not in SERVICES}
    print(_columns([(name, _state(info)) for name, info in own.items()]))
    print("\nServices and their keys")
    print(_columns(_services({name: providers[name] for name in providers if name not in own})))
    found = local.find_models()
    print("\nModels on this machine")
    print(_columns([(size_text(one.bytes).rjust(9), one.source, one.spec) for one in found]))
    _print_missing(found, providers)
    kept = _kept_servers()
    if kept:
        print("\nServers that are kept running", *kept, sep="\n")
    return 0


def _print_missing(found: Sequence[LocalModel], providers: Mapping[str, ProviderInfo]) -> None:
    """Say for which of the models found the provider is missing, and what to install."""
    for name in sorted({one.spec.partition(":")[0] for one in found}):
        info = providers.get(name)
        if info is None or not info.available:
            why = (
                info.reason
                if info is not None
                else f'install it: pip install "nbproviders[{name}]"'
            )
            print(f"\nThose of {name} need its provider, which is not available here:\n  {why}")


def _state(info: ProviderInfo) -> str:
    return "available" if info.available else f"not available: {info.reason}"


def _services(providers: Mapping[str, ProviderInfo]) -> list[tuple[str, str, str]]:
    """Return name, state and place of the key of each service; never a key."""
    from nbproviders.catalog import keys

    rows = []
    located = keys.locate(SERVICES[name].key_variables for name in providers)
    for (name, info), key in zip(providers.items(), located, strict=True):
        told = _key_state(SERVICES[name], key) if info.available else ("unavailable", info.reason)
        rows.append((name, *told))
    return rows


def _key_state(service: Service, key: Location | None) -> tuple[str, str]:
    # A variable's name, not what it holds: an address may have a password in it.
    elsewhere = service.url_variable if os.environ.get(service.url_variable) else ""
    if not service.key_variables:
        return "needs no key", f"at {elsewhere or service.base_url}"
    if key is None:
        state, where = "no key yet", f"set {service.key_variables[0]}"
    else:
        state = "key spoiled" if key.wrong else "has a key"
        where = f"keyring: {key.variable}" if key.place == "keyring" else key.variable
        where += f" has {key.wrong}" if key.wrong else ""
    return state, f"{where}, at {elsewhere}" if elsewhere else where


def _kept_servers() -> list[str]:
    """Return two lines for each server that outlives its kernel."""
    from nbproviders.runtimes.process.keeping import kept

    try:
        found = kept()
    except ConfigurationError as error:  # the folder for them; what else is listed does not need it
        return textwrap.wrap(error.message, _COLUMNS, initial_indent="  ", subsequent_indent="  ")
    lines = []
    for one in found:
        left = "" if one.left_s is None else f", ends in {_time(one.left_s)}"
        state = f"process {one.pid}  {_owners(one)}{left}"
        lines += [f"  {one.reference or one.what}", f"    {one.base_url}  {state}"]
    return lines


def _doctor(*_: Any) -> int:
    from nbproviders import doctor
    from nbproviders.doctor.report import tell

    problems = tell(doctor.examine(), functools.partial(print, flush=True))
    return 1 if problems else 0


def _owners(one: Kept) -> str:
    return f"{one.owners or 'no'} owner{'s' if one.owners > 1 else ''}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < _MINUTES_FROM_S else f"{seconds / 60:.0f} min"


def _stop(options: argparse.Namespace, _: Sequence[str]) -> int:
    from nbproviders.runtimes.process import keeping

    found = keeping.kept()
    chosen = found if options.all else [_chosen(options.server, found)]
    for one in chosen:
        engine.default().wait(functools.partial(keeping.stop, one))
        had = f", which had {_owners(one)}" if one.owners else ""
        print(f"ended  {one.reference or one.what}  (process {one.pid}{had})", flush=True)
    if not chosen:
        print("No server is kept running.")
    return 0


def _chosen(text: str, found: Sequence[Kept]) -> Kept:
    """Return the one kept server that a reference, or the number of a process, means."""
    named = [
        [one for one in found if text in (str(one.pid), one.reference)],
        [one for one in found if _loaded(text) == _loaded(one.reference or one.what)],
        [one for one in found if text == one.what],
    ]
    matching = next(filter(None, named), [])
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise ConfigurationError(
            f"{text!r} is the name of {len(matching)} kept servers.",
            hint=f"Name the process: {' or '.join(str(one.pid) for one in matching)}.",
        )
    kept = "; ".join(f"{one.reference or one.what} (process {one.pid})" for one in found)
    raise ConfigurationError(
        f"No kept server goes by {text!r}.",
        hint=f"There are: {kept}." if kept else "None is kept running now.",
    )


def _loaded(reference: str) -> str:
    """Return a reference in one spelling, without what it says of keeping; what is none, as it is."""
    from nbproviders import registry
    from nbproviders.core.spec import ModelSpec

    try:
        spec = ModelSpec.parse(reference, registry.list_available())
    except ConfigurationError:
        return reference
    loads = {name: v for name, v in spec.options if name not in ("keep", "keep_s")}
    return ModelSpec.of(spec.provider, spec.model, loads).text


def _columns(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "  none"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(map(str.ljust, row, widths)).rstrip()  # the last is as long as it is
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
