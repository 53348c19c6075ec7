"""The pod that the chart asks for, as far as files go: ConfigMaps mounted as the kubelet mounts them.

The kubelet keeps the files in a folder with a time in its name, reaches it by the link `..data`, and changes a mount by
renaming a new link over the old one. Everything is below a folder of the test's own, in place of the root.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.helm import Document, Rendered

CONFIG_FOLDER = "/etc/sniproxy"

Adapt = Callable[[Document], None]


class Pod:
    """What the container sni-proxy of `rendered` finds below `root`. `adapt` puts its config's addresses right."""

    def __init__(self, root: Path, rendered: Rendered, adapt: Adapt) -> None:
        self.root = root
        self._adapt = adapt
        self._swaps = 0
        self.change(rendered)

    @property
    def config(self) -> Path:
        """The file that the container's arguments name."""
        return self._inside(self._arguments[self._arguments.index("--config") + 1])

    def change(self, rendered: Rendered) -> None:
        """Mount what another rendering has, as the kubelet would in the running pod."""
        container = rendered.container()
        self._arguments: list[str] = container["args"]
        volumes = {one["name"]: one for one in rendered.the("Deployment")["spec"]["template"]["spec"]["volumes"]}
        for mount in container["volumeMounts"]:
            assert "subPath" not in mount, "a subPath never changes"
            volume = volumes[mount["name"]]
            folder = self._inside(mount["mountPath"])
            folder.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                self._swap(folder, rendered.the("ConfigMap", volume["configMap"]["name"])["data"])

    def _inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _adapted(self, name: str, text: str) -> str:
        if name != self.config.name:
            return text
        config = yaml.safe_load(text.replace(f"{CONFIG_FOLDER}/", f"{self._inside(CONFIG_FOLDER)}/"))
        self._adapt(config)
        return yaml.safe_dump(config)

    def _swap(self, folder: Path, files: Mapping[str, str]) -> None:
        self._swaps += 1
        new, link = folder / f"..2026_01_01_00_00_{self._swaps:02}", folder / "..data"
        old = folder / os.readlink(link) if link.is_symlink() else None
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(self._adapted(name, text))
        (folder / "..data_tmp").symlink_to(new.name)
        (folder / "..data_tmp").rename(link)
        for name in files:
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(f"..data/{name}")
        for path in folder.iterdir():
            if not path.name.startswith("..") and path.name not in files:
                path.unlink()
        if old is not None:
            shutil.rmtree(old)


def on_free_ports(home: Path, more: Mapping[str, Any] | None = None) -> Adapt:
    """Listen where a test can: on free ports of the loopback, with the access log where the tests read it.

    `more` overrides sections of the config, key by key.
    """

    def adapt(config: Document) -> None:
        for listener in config["listeners"]:
            if not listener["address"].startswith("unix:"):
                listener["address"] = "127.0.0.1:0"
        config["admin"] = dict.fromkeys(config["admin"], "127.0.0.1:0")
        config["access_log"] = {"path": str(home / "access.log")}
        config["workers"] = 1
        for section, values in (more or {}).items():
            config[section] = {**config.get(section, {}), **values}

    return adapt
