"""An SVG picture as PNG, drawn by resvg. It needs one font of this machine for the labels, and brings none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from gpuworkbench.io.atomic import temporary_path

ZOOM = 2.0  # twice the SVG's size, so that it can be printed
# File of a plain text font -> its family, the likeliest first. resvg draws no text in a family that it does not have.
FONTS = {
    "DejaVuSans.ttf": "DejaVu Sans",
    "LiberationSans-Regular.ttf": "Liberation Sans",
    "NotoSans-Regular.ttf": "Noto Sans",
    "Ubuntu-R.ttf": "Ubuntu",
    "OpenSans-Regular.ttf": "Open Sans",
    "Roboto-Regular.ttf": "Roboto",
    "FreeSans.ttf": "FreeSans",
    "Cantarell-Regular.otf": "Cantarell",
    "NimbusSans-Regular.otf": "Nimbus Sans",
    "arial.ttf": "Arial",
    "DejaVuSansMono.ttf": "DejaVu Sans Mono",
    "LiberationMono-Regular.ttf": "Liberation Mono",
}
NO_FONT = "no PNG: no font here for its labels; install one, such as fonts-dejavu-core"


def font_folders() -> list[Path]:
    """Where fonts are installed: the user's, the system's, and those of Windows under WSL."""
    folders = [Path(platformdirs.user_data_dir()) / "fonts", Path.home() / ".fonts"]
    return [*folders, *map(Path, ("/usr/local/share/fonts", "/usr/share/fonts", "/mnt/c/Windows/Fonts"))]


def find_font(folders: Iterable[Path] | None = None) -> tuple[Path, str] | None:
    """A font file and its family; None where none of FONTS is installed."""
    found: dict[str, Path] = {}
    for folder in font_folders() if folders is None else folders:
        for root, _, names in os.walk(folder):
            for name in FONTS.keys() & set(names):
                found.setdefault(name, Path(root) / name)
    return next(((found[name], family) for name, family in FONTS.items() if name in found), None)


def write_png(svg: Path) -> Path | None:
    """The picture beside `svg`; None where there is no font or it cannot be drawn or written: the SVG is the result."""
    import resvg_py

    font = find_font()
    if font is None:
        return None
    png = svg.with_suffix(".png")
    temporary = temporary_path(png)
    try:
        data = resvg_py.svg_to_bytes(
            svg_string=svg.read_text(encoding="utf-8"),
            zoom=ZOOM,
            skip_system_fonts=True,
            font_files=[str(font[0])],
            sans_serif_family=font[1],
            font_family=font[1],
        )
        temporary.write_bytes(bytes(data))
        temporary.replace(png)
    except (OSError, ValueError):
        temporary.unlink(missing_ok=True)
        return None
    return png
