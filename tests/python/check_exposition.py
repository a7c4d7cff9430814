"""check_exposition.py ADDRESS: what a daemon says at /metrics, read as programs read it: the classic text format 0.0.4 and
OpenMetrics 1.0. Both must tell the same. The parsers of `prometheus_client` look at them, too, where it is installed."""

import re
import sys
import urllib.request

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{((?:{LABEL})(?:,{LABEL})*)?\}})? (NaN|[+-]Inf|[-+0-9.eE]+)")
CLASSIC, OPEN = "text/plain; version=0.0.4; charset=utf-8", "application/openmetrics-text; version=1.0.0; charset=utf-8"
# What is measured anew for each request.
LIVELY = re.compile("cdal_(http_requests_total|resident_bytes|device_|spool_free_bytes)")
SUFFIXES = {
    CLASSIC: {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]},
    OPEN: {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]},
}


def ask(address, accept):
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def samples(kind, text):
    """Of every sample its name, labels and value; each belongs to the family that was declared last."""
    found, family, families = {}, None, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, of = line.split(" ")
            assert of in SUFFIXES[kind], line
            assert name not in families, f"{name} is declared twice"
            families.add(name)
            family = (name, of)
        elif line.startswith("#"):
            assert re.fullmatch(rf"# (HELP|UNIT) {NAME} .+|# EOF", line), line
            assert kind == OPEN or line.startswith("# HELP "), line
        else:
            name, labels, value = SAMPLE.fullmatch(line).groups()
            assert name in [family[0] + suffix for suffix in SUFFIXES[kind][family[1]]], (name, family)
            key = (name, labels)
            assert key not in found, f"{line} is there twice"
            found[key] = value
    return found


def main(address):
    told = {}
    for kind in (CLASSIC, OPEN):
        given, text = ask(address, kind)
        assert given == kind, given
        assert text.endswith("# EOF\n") == (kind == OPEN), text[-80:]
        told[kind] = {key: value for key, value in samples(kind, text).items() if not LIVELY.match(key[0])}
        try:
            from prometheus_client import openmetrics, parser
            import prometheus_client.openmetrics.parser
        except ImportError:
            print("prometheus_client is not installed: its parsers were not asked")
        else:
            read = parser if kind == CLASSIC else openmetrics.parser
            assert len(list(read.text_string_to_metric_families(text))) > 10
    assert told[CLASSIC] == told[OPEN], set(told[CLASSIC].items()) ^ set(told[OPEN].items())


main(*sys.argv[1:])
