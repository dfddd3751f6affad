"""The page's own SHA-256, in node, against node's: of all lengths, however the bytes are cut."""

import shutil
import subprocess
from pathlib import Path

from ibpfs import gateway

_SCRIPT = """
import { createHash, randomBytes } from "node:crypto";
import { Sha256 } from "./hash.mjs";
for (const length of [...Array(260).keys(), 4096, 1_000_003]) {
  const data = randomBytes(length);
  const hash = new Sha256();
  for (let at = 0; at < length; ) {
    const size = Math.ceil(Math.random() * (length > 1000 ? 70_000 : 90));
    hash.update(data.subarray(at, at + size));
    at += size;
  }
  if (hash.finish() !== createHash("sha256").update(data).digest("hex")) throw new Error(`of ${length} bytes`);
}
"""


def test_it_is_sha256(tmp_path: Path) -> None:
    shutil.copy(Path(gateway.__file__).with_name("pages") / "hash.js", tmp_path / "hash.mjs")
    (tmp_path / "test.mjs").write_text(_SCRIPT)
    done = subprocess.run(["node", tmp_path / "test.mjs"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
