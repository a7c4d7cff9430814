"""check_tls.py PORT FOLDER: a server on localhost that trusts who FOLDER/ca.pem signed and shows FOLDER/server.pem."""

import http.client
import ssl
import sys


def status(port, root, client=None):
    context = ssl.create_default_context(cafile=root)
    if client:
        context.load_cert_chain(f"{client}.pem", f"{client}.key")
    connection = http.client.HTTPSConnection("localhost", int(port), context=context, timeout=20)
    connection.request("GET", "/v1/status")
    return connection.getresponse().status


def main(port, folder):
    server, client = f"{folder}/server", f"{folder}/client"
    assert status(port, f"{server}.pem", client) == 200
    for root, shown in ((f"{server}.pem", None), (f"{server}.pem", server), (f"{client}.pem", client)):
        try:
            status(port, root, shown)
        except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
            continue
        raise AssertionError(f"{shown} was let in, or {root} believed")


main(*sys.argv[1:])
