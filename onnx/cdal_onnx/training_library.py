"""Makes a plain `libonnxruntime` with the training C API out of the training wheel's Python module.

onnxruntime-training-cpu 1.19.2 is the last published training build. Its Python extension holds the whole
runtime, but `OrtGetApiBase` is not exported and the CPython symbols of its glue are undefined. Two edits of
the ELF file make it a library for any process: export the function, and mark those symbols weak so that the
loader leaves them null. Neither changes a byte of code.
"""

from __future__ import annotations

import struct
from pathlib import Path

from .errors import Refused

ENDBR64 = b"\xf3\x0f\x1e\xfa"
LEA_RAX_RIP = b"\x48\x8d\x05"
RET = b"\xc3"


def convert(source: Path, target: Path, version: str) -> None:
    """Writes the library to `target`; refuses a module whose API base is not found exactly once."""
    import lief

    binary = lief.ELF.parse(str(source))
    if binary is None:
        raise Refused(f"{source}: not an ELF file")
    entry = _api_base_function(binary, version.encode() + b"\0")
    for symbol in binary.dynamic_symbols:
        if symbol.shndx == 0 and symbol.name.startswith(("Py", "_Py")):
            symbol.binding = lief.ELF.Symbol.BINDING.WEAK
    binary.add_exported_function(entry, "OrtGetApiBase")
    binary.write(str(target))


def _api_base_function(binary, version: bytes) -> int:
    """Address of the one function that returns {GetApi, GetVersionString} where the latter returns `version`."""
    text = binary.get_section(".text")
    code, base = bytes(text.content), text.virtual_address
    pointers = {r.address: r.addend for r in binary.dynamic_relocations if "RELATIVE" in str(r.type)}

    def returned(function: int) -> int | None:
        """What `function` returns, if its body is just `lea rax, [rip + d]; ret`."""
        at = function - base
        if not 0 <= at < len(code) - 12:
            return None
        at += len(ENDBR64) * (code[at:at + 4] == ENDBR64)
        if code[at:at + 3] != LEA_RAX_RIP or code[at + 7:at + 8] != RET:
            return None
        return base + at + 7 + struct.unpack_from("<i", code, at + 3)[0]

    found = []
    at = code.find(LEA_RAX_RIP)
    while at >= 0:
        start = base + at - len(ENDBR64) * (code[at - 4:at] == ENDBR64)
        table = returned(start)
        if table in pointers and table + 8 in pointers:
            text_at = returned(pointers[table + 8])
            if text_at and bytes(binary.get_content_from_virtual_address(text_at, len(version))) == version:
                found.append(start)
        at = code.find(LEA_RAX_RIP, at + 1)
    if len(found) != 1:
        raise Refused(f"expected one OrtGetApiBase of version {version[:-1].decode()}, found {len(found)}")
    return found[0]
