"""The image's bill of materials, from a file system like the image's: valid CycloneDX, with versions and licences."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

SCRIPT = Path(__file__).parents[1] / "deploy" / "image" / "sbom.py"
SITE = "usr/lib/python3/dist-packages"
FILES = {
    f"{SITE}/new-1.2.dist-info/METADATA": "Name: new\nVersion: 1.2\nLicense-Expression: MIT\n\nText",
    f"{SITE}/old-3.dist-info/METADATA": "Name: old\nVersion: 3\nLicense: BSD\n of sorts\n"
    "Classifier: License :: OSI Approved :: BSD License\n",
    f"{SITE}/pythonricing-0.1.0.dist-info/METADATA": "Name: pythonricing\nVersion: 0.1.0\nLicense-Expression: MIT\n",
    f"{SITE}/other.txt": "Name: nothing\nVersion: 1\n",
    "var/lib/dpkg/status.d/libssl3t64": "Package: libssl3t64\nStatus: install ok installed\nVersion: 3.5.1-1\n",
    "usr/share/doc/libssl3t64/copyright": "In prose.\nLicense: to whom it may concern\n",
    "var/lib/dpkg/status.d/ca-certificates": "Package: ca-certificates\nVersion: 20250419\n",
    "usr/share/doc/ca-certificates/copyright": "Format: 1\n\nLicense: GPL-2+\n text\n\nFiles: a/*\nLicense: MPL-2.0\n",
}


def run(files: Mapping[str, str], target: Path) -> subprocess.CompletedProcess[bytes]:
    pytest.importorskip("cyclonedx")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    command = [sys.executable, str(SCRIPT), str(target)]
    return subprocess.run(command, input=archive.getvalue(), capture_output=True, check=False)


def test_it_lists_what_there_is_with_licences(tmp_path: Path) -> None:
    done = run(FILES, tmp_path / "sbom.json")
    assert done.stdout.decode().splitlines() == [
        "ca-certificates 20250419: GPL-2+, MPL-2.0",
        "libssl3t64 3.5.1-1: see usr/share/doc/libssl3t64/copyright",
        "new 1.2: MIT",
        "old 3: BSD License",
        "pythonricing 0.1.0: MIT",
    ]
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert found["metadata"]["component"]["purl"] == "pkg:pypi/pythonricing@0.1.0"
    assert {each["purl"] for each in found["components"]} == {
        "pkg:pypi/new@1.2",
        "pkg:pypi/old@3",
        "pkg:deb/debian/libssl3t64@3.5.1-1",
        "pkg:deb/debian/ca-certificates@20250419",
    }


def test_it_is_valid(tmp_path: Path) -> None:
    assert run(FILES, tmp_path / "sbom.json").returncode == 0
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (tmp_path / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_an_image_without_packages_is_none_of_ours(tmp_path: Path) -> None:
    done = run({"etc/passwd": ""}, tmp_path / "sbom.json")
    assert (done.returncode, done.stderr) == (1, b"there is no package in this image\n")
