"""What an image holds, as a CycloneDX bill of materials: `podman export … | python deploy/image/sbom.py FILE`.

Python's packages are told by their metadata in the image, Debian's by the status that deploy/image/rootfs.sh leaves for
each package of which a file is there. Prints a line for each with its licences.
"""

from __future__ import annotations

import re
import sys
import tarfile
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

PYTHON = re.compile(r".*/dist-packages/[^/]+\.dist-info/METADATA")
DEBIAN = re.compile(r"(?:\./)?var/lib/dpkg/status\.d/[^/]+")
COPYRIGHT = re.compile(r"(?:\./)?usr/share/doc/([^/]+)/copyright")


def components(files: dict[str, str]) -> Iterator[Component]:
    """The packages that these files, by their paths, tell of."""
    copyrights = {found[1]: text for name, text in files.items() if (found := COPYRIGHT.fullmatch(name))}
    for name, text in files.items():
        told = HeaderParser().parsestr(text)
        if PYTHON.fullmatch(name):
            kind = ComponentType.APPLICATION if told["Name"] == "pythonricing" else ComponentType.LIBRARY
            yield _component(kind, "pypi", None, told["Name"], told["Version"], _licences(told))
        elif DEBIAN.fullmatch(name):
            terms = _terms(copyrights.get(told["Package"], ""))
            yield _component(ComponentType.LIBRARY, "deb", "debian", told["Package"], told["Version"], terms)


def _component(
    kind: ComponentType, ecosystem: str, namespace: str | None, name: str, version: str, terms: list[str]
) -> Component:
    purl = PackageURL(ecosystem, namespace, name, version)
    licences = LicenseFactory()
    # An expression stands alone; several words of a copyright file are names.
    told = (
        [licences.make_from_string(terms[0])] if len(terms) == 1 else [licences.make_with_name(term) for term in terms]
    )
    return Component(type=kind, name=name, version=version, purl=purl, bom_ref=str(purl), licenses=told)


def _licences(told: Message) -> list[str]:
    """What a Python package says of its licence, the newest way first."""
    if expression := told["License-Expression"]:
        return [expression]
    if classified := [each.rpartition(" :: ")[2] for each in told.get_all("Classifier", []) if "License ::" in each]:
        return classified
    return [told["License"].splitlines()[0]] if told["License"] else []


def _terms(copyright: str) -> list[str]:
    """The licences that a copyright file of Debian's names, if it can be read by machines."""
    if not copyright.startswith("Format:"):
        return []
    return sorted({found.strip() for found in re.findall(r"^License: *(\S.*)$", copyright, re.MULTILINE)})


def main(target: Path) -> None:
    files: dict[str, str] = {}
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as image:
        for member in image:
            if any(each.fullmatch(member.name) for each in (PYTHON, DEBIAN, COPYRIGHT)) and member.isfile():
                content = image.extractfile(member)
                assert content is not None
                files[member.name] = content.read().decode(errors="replace")
    found = sorted(components(files), key=lambda each: str(each.purl))
    if not found:
        sys.exit("there is no package in this image")
    service = next((each for each in found if each.name == "pythonricing"), None)
    bom = Bom(components=[each for each in found if each is not service])
    bom.metadata.component = service
    if service is not None:
        bom.register_dependency(service, bom.components)
    target.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")
    for each in found:
        names = [getattr(term, "value", None) or getattr(term, "id", None) or term.name for term in each.licenses]
        print(f"{each.name} {each.version}: {', '.join(names) or 'see usr/share/doc/' + each.name + '/copyright'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
