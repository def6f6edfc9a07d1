"""Writes the list of what the proxy is made of, in CycloneDX's form, from the locked packages: python util/sbom.py"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

TOP = Path(__file__).resolve().parent.parent
LOCK, SBOM = TOP / "requirements.txt", TOP / "docs" / "sbom.cdx.json"
ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?P<rest>.*\n(?:[ ].*\n)*)", re.M)
HASH = re.compile(r"--hash=sha256:(\w+)")
ASKER = re.compile(r"^    #(?: via|  ) +(\S+)", re.M)


def made(lock: str) -> str:
    """The SBOM of a requirements.txt as uv writes it: hashes, and in comments who asked for a package."""
    whole = Component(name="tavern-proxy", type=ComponentType.APPLICATION, bom_ref="tavern-proxy")
    packages: dict[str, Component] = {}
    asked_by: dict[str, list[str]] = {}
    for entry in ENTRY.finditer(lock):
        name, version = entry["name"], entry["version"]
        packages[name] = Component(
            name=name,
            version=version,
            bom_ref=name,
            purl=PackageURL("pypi", name=name, version=version),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one) for one in HASH.findall(entry[0])],
        )
        asked_by[name] = ASKER.findall(entry["rest"])
    needs: dict[str, list[Component]] = defaultdict(list)
    for name, askers in asked_by.items():
        for asker in askers:
            needs[asker].append(packages[name])
    bom = Bom(components=packages.values(), serial_number=uuid5(NAMESPACE_OID, lock))
    bom.metadata.component = whole
    bom.metadata.timestamp = None  # type: ignore[assignment]  # of the same lock always the same
    bom.register_dependency(whole, needs["-r"])
    for name, component in packages.items():
        bom.register_dependency(component, needs[name])
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


if __name__ == "__main__":
    SBOM.write_text(made(LOCK.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
