"""Find the files that a user names, and write files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import platform
import re
import shutil
import stat
import tempfile
import uuid
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from PIL import Image
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser as YamlParser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from utils.errors import UserError, first_line, shown
from utils.package import INSTALLED

if yaml.__with_libyaml__:
    from yaml._yaml import CParser

with contextlib.suppress(ImportError):  # optional: pip install pillow-heif
    from pillow_heif import register_heif_opener

    register_heif_opener()

ROOT = Path(__file__).resolve().parents[1]
WORK = Path() if INSTALLED else ROOT
"""Where files are made for the user: the working folder; in a checkout the project's."""
RUNS_DIR = WORK / "runs"

YamlMapping = dict[str, Any]  # Any: a user's YAML holds values of any kind until they are checked
JsonObject = dict[str, Any]  # Any: the same of JSON, and its objects mix numbers, text and lists

_FORMATS = {"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
for _module in ("Avif", "Bmp", "Gif", "Jpeg", "Jpeg2K", "Mpo", "Png", "Ppm", "Tiff", "WebP"):
    with contextlib.suppress(ImportError):  # AVIF came with Pillow 11.3; all plug-ins of Pillow take a second
        importlib.import_module(f"PIL.{_module}ImagePlugin")
_SUFFIXES = {suffix for suffix, kind in Image.EXTENSION.items() if kind in _FORMATS}
IMAGE_FORMATS = tuple(sorted(_FORMATS & Image.OPEN.keys()))
"""What images are read as, whatever their suffix; no format for which Pillow starts another program."""
VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
IMAGE_SUFFIXES = frozenset({".dng"} | _SUFFIXES) - VIDEO_SUFFIXES
DATASET_SUFFIXES = IMAGE_SUFFIXES | {".gif"}  # as a source of detect.py a GIF is a video

MOST_NODES = 100_000
"""Values of a YAML or a checkpoint with aliases written out; 40 000 numbered class names fit."""
DEEPEST = 100
"""Lists and mappings inside each other in a YAML or a checkpoint."""
_TEMPORARY_NAME = 40  # characters of a file's name that the temporary one beside it bears


def datasets_dir() -> Path:
    """Return the folder that data sets are fetched to.

    It is $YOLOV5_DATASETS_DIR, else `datasets`: beside the checkout, or for the installed package in the
    working folder.
    """
    given = os.environ.get("YOLOV5_DATASETS_DIR")
    if given:
        return expand_user(given)
    return (Path.cwd() if INSTALLED else ROOT.parent) / "datasets"


def expand_user(path: str | Path) -> Path:
    """Return a path with a leading `~` or `~user` expanded.

    That of an unknown user stays as it is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_regular(path: str | Path) -> bytes:
    """Return the bytes of a file.

    A pipe or a device is refused without waiting for it.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def user_cache_dir() -> Path:
    """Return the user's cache folder: $XDG_CACHE_HOME, %LOCALAPPDATA% or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache")


def own_or_user_folder(folder: Path, kind: str) -> Path:
    """Return the folder for a cache: the given one, if it can be written.

    Otherwise it is one of its own in the user's cache folder. A folder whose mode allows nobody to write
    is left alone even by root, who could write all the same.
    """
    with contextlib.suppress(OSError):
        if os.access(folder, os.W_OK) and (os.name != "posix" or folder.stat().st_mode & 0o222):
            return folder
    return user_cache_dir() / kind / sha256(os.fsencode(folder.absolute())).hexdigest()[:16]


def increment_dir(project: str | Path, name: str, exist_ok: bool = False) -> Path:
    """Create and return `project/name`, or `project/name2`, `name3`, ... when it exists already.

    Creating is what claims the name, so two runs started together never share a folder.
    """
    base = Path(project) / name
    if exist_ok:
        base.mkdir(parents=True, exist_ok=True)
        return base
    base.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        candidate = base if number == 1 else base.with_name(f"{base.name}{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            number += 1
        else:
            return candidate


def atomic_write(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all.

    The data go to a temporary file beside it, are flushed to the disk, and the file is renamed.

    If `write` or the disk fails, the old file is untouched, the temporary one removed and the error raised.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = f".{path.name[:_TEMPORARY_NAME]}"  # not the whole name: that may be as long as names can be
    temporary = path.with_name(f"{beside}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        # Not tempfile's, which nobody else may read: to give it an ordinary file's rights the process's umask
        # would have to be read, and that means changing it under the feet of other threads.
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def remove_dead_parts(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in a folder.

    Call it before this process writes there: a container may give it the number of the killed one.
    """
    if os.name != "posix":  # elsewhere there is no harmless way to ask whether a process lives
        return
    for path in folder.glob(".*.part"):
        found = _PART.search(path.name)
        if found and found[1] == _machine() and not _is_another_alive(int(found[2])):
            path.unlink(missing_ok=True)


_PART = re.compile(r"\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\.part$")


def _machine() -> str:
    """Return eight hexadecimal digits that tell this machine from others on a shared disk."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_another_alive(pid: int) -> bool:
    """Return whether another process of this number runs."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


def atomic_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


def load_yaml(path: str | Path, *, names_as_text: bool = False) -> YamlMapping:
    """Read a YAML mapping with the safe loader.

    Args:
        path: the file.
        names_as_text: keep the words under the key `names` as written; YAML itself makes truth values of
            yes and no, and a number of 007.

    Raises:
        UserError: missing, unreadable, a tab, a syntax error (with its line), nested too deep, or not a
            mapping.
    """
    path = Path(path)
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such YAML file; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as UTF-8 text ({reason}); check the file") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node and _written_out(node, {}) > MOST_NODES:
            raise UserError(f"{path}: its aliases repeat parts without end; write the values out")
        for key, value in node.value if names_as_text and isinstance(node, yaml.MappingNode) else ():
            for word in _children(value) if key.value == "names" else ():
                if isinstance(word, yaml.ScalarNode):
                    word.tag = "tag:yaml.org,2002:str"
        data = loader.construct_document(node) if node else None
    except yaml.YAMLError as error:
        raise UserError(_yaml_sentence(path, text, error)) from None
    except RecursionError:
        raise UserError(
            f"{path}: lists or mappings are nested too deeply to be read; close the brackets that "
            "were left open"
        ) from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise UserError(
            f"{path}: holds {found} where 'key: value' lines are expected; see the files in data/"
        )
    return data


if yaml.__with_libyaml__:
    # Text by libyaml, which is five times as fast; values by Python, where depth and number are counted.
    class _Text(Composer, CParser):
        def __init__(self, text: str) -> None:
            CParser.__init__(self, text)
            Composer.__init__(self)

else:

    class _Text(Reader, Scanner, YamlParser, Composer):  # type: ignore[no-redef]  # one of the two is made
        def __init__(self, text: str) -> None:
            Reader.__init__(self, text)
            Scanner.__init__(self)
            YamlParser.__init__(self)
            Composer.__init__(self)


class _Loader(_Text, SafeConstructor, Resolver):
    """Name the line of a value that is not what its tag says.

    Values that are too many or too deep are refused while they are read.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self.depth = self.nodes = 0

    # Any: an index, a node or nothing.
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node; yaml calls this."""
        self.depth += 1
        self.nodes += 1
        if self.depth > DEEPEST:
            raise RecursionError
        if self.nodes > MOST_NODES:
            event: Any = self.peek_event()  # Any: the marks of libyaml and of Python have no common type
            raise yaml.constructor.ConstructorError(
                problem=f"more than {MOST_NODES} values", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            _refuse_doubles(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """Return the value of a node; yaml calls this."""
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                problem=f"no {kind}", problem_mark=node.start_mark
            ) from None


def _refuse_doubles(mapping: yaml.MappingNode) -> None:
    """Refuse a key that is there twice; PyYAML would keep its last value."""
    known: dict[tuple[str, str], yaml.ScalarNode] = {}
    for key, _ in mapping.value:
        if (
            isinstance(key, yaml.ScalarNode)
            and (first := known.setdefault((key.tag, key.value), key)) is not key
        ):
            raise yaml.constructor.ConstructorError(
                problem=f"the key {shown(key.value)} is in line {first.start_mark.line + 1} already",
                problem_mark=key.start_mark,
            )


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of nodes when every alias is written out."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES  # as long as it is counted: a node inside itself has no end
        known[id(node)] = 1 + sum(_written_out(part, known) for part in _children(node))
    return known[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    """Return the entries of a sequence, the keys and values of a mapping, or none."""
    values = node.value if isinstance(node, yaml.CollectionNode) else ()
    return [part for value in values for part in (value if isinstance(value, tuple) else (value,))]


def _yaml_sentence(path: Path, text: str, error: yaml.YAMLError) -> str:
    """Return one sentence for a YAML error: line, problem and remedy."""
    mark = getattr(error, "problem_mark", None)
    lines = text.splitlines()
    if mark is None:
        return f"{path}: is not valid YAML ({first_line(error)}); correct it or save it as plain UTF-8 text"
    where = f"{path}, line {mark.line + 1}"
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: mark.column + 1]:
        return f"{where}: a tab is used for indentation, which YAML forbids; replace it with spaces"
    problem = getattr(error, "problem", None) or "syntax error"
    return f"{where}: is not valid YAML ({problem[:200]}, near {shown(line.strip()[:60])}); mend that line"


def save_yaml(path: str | Path, data: YamlMapping) -> None:
    """Write a mapping as YAML, keys in their own order, whole or not at all."""
    atomic_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def find_file(name: str | Path, *folders: str, folder: bool = False) -> Path:
    """Find the file that a user names.

    The path as given comes first, then below the project, then a bare name in `folders`.

    Args:
        name: a path, or a bare file name such as `coco128.yaml`.
        folders: folders of the project searched recursively for a bare name.
        folder: whether a folder as given will do: some exported formats are one.

    Raises:
        UserError: nothing found (it says where it looked), or several files of that name.
    """
    given = Path(name)
    for candidate in (given, ROOT / given):
        if candidate.is_file() or (folder and candidate.is_dir()):
            return candidate
    looked = [str(given), str(ROOT / given)]
    if given.parent == Path(".") and str(given) not in ("", "."):
        found = sorted({p for folder in folders for p in (ROOT / folder).rglob(given.name) if p.is_file()})
        if len(found) > 1:
            raise UserError(
                f"{given}: several files have that name ({', '.join(map(str, found))}); give the path"
            )
        if found:
            return found[0]
        looked += [f"{ROOT / folder}/**" for folder in folders]
    raise UserError(f"{given}: no such file (looked for {', '.join(looked)}); {path_remedy(str(given))}")


def path_remedy(path: str, otherwise: str = "check the path") -> str:
    r"""Return the remedy for a path that leads nowhere.

    >>> path_remedy("data/x.yaml"), path_remedy(r"C:\sets\x.yaml") if os.sep == "/" else ""
    ('check the path', 'it is a path of Windows: give it as this system has it (in WSL /mnt/c/sets/x.yaml)')
    """
    drive, _, rest = path.replace("\\", "/").partition(":")
    on_drive = len(drive) == 1 and drive.isalpha() and rest.startswith("/")
    if os.sep != "/" or not (on_drive or "\\" in path):
        return otherwise
    example = f" (in WSL /mnt/{drive.lower()}{rest})" if on_drive else ""
    return f"it is a path of Windows: give it as this system has it{example or ', with slashes'}"


def spellings(path: str, *, shortened: bool = True) -> list[str]:
    """Return a path as written, and the spellings that its writer may have meant.

    These have slashes for backslashes and, if `shortened`, no leading `../` or `data/`.

    >>> spellings("../images"), spellings("../images", shortened=False)
    (['../images', 'images'], ['../images'])
    """
    plain = path.replace("\\", "/") if os.sep == "/" else path
    bare, leads = plain.removeprefix("./"), ("../", "data/") if shortened else ()
    return list(dict.fromkeys((path, plain, *(bare[len(lead) :] for lead in leads if bare.startswith(lead)))))


def read_path_list(listed: Path, root: Path | None = None) -> list[tuple[int, str, Path]]:
    """Return number, text and file of each line of a list of paths.

    Blank lines are left out.

    A relative path is looked for beside the list, then below `root` (the data set's folder), then in the
    working folder; a leading `./` means beside the list only. Where nothing is found, the first place is
    returned. Backslashes of lists from Windows are understood; with a `root` also other `spellings`.

    Raises:
        UserError: the list cannot be read, or is not text.
    """
    try:
        text = read_regular(listed).decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{listed}: the list cannot be read ({error.strerror}); check the path") from None
    if "\0" in text:
        raise UserError(f"{listed}: is not UTF-8 text; expected one path a line, so save it as UTF-8")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, name, _listed_file(name, listed.parent, root)) for number, name in lines if name]


def _listed_file(name: str, beside: Path, root: Path | None) -> Path:
    places = []
    for spelled in spellings(name, shortened=root is not None):
        places.append(beside / spelled)
        if not spelled.startswith("./"):
            places += [*([root / spelled] if root else []), Path(spelled)]
    return next((place for place in places if place.exists()), places[0])


def path_size(path: Path) -> int:
    """Return the bytes of a file, or of every file in a folder."""
    return (
        path.stat().st_size
        if path.is_file()
        else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    )


def replace_path(source: Path, target: Path) -> None:
    """Put a finished file or folder in the place of another.

    An old folder is removed only afterwards.
    """
    if not target.is_dir():
        os.replace(source, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    os.replace(target, old / target.name)
    try:
        os.replace(source, target)
    except OSError:
        os.replace(old / target.name, target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
