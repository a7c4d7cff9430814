"""Peers that speak storage commitment. What happens is printed, a line of JSON each.

commitment.py ask PORT AE_TITLE FILE...      stores the files and asks whether they, an object that was never sent and the
                                             first under another class are safe; `--known` leaves the last two out
commitment.py hear PORT REFUSALS             takes reports, after refusing that many
commitment.py archive PORT REPORT_PORT HOW   takes objects and commits to them: on an association of its own (`new`), on
                                             the same (`same`), only at the second request (`silent`), after having lost
                                             them once (`loses`), or never, as they contradict others (`conflict`)
"""

import json
import sys
import threading
import time

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, StoragePresentationContexts, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel as PUSH_MODEL
from pynetdicom.sop_class import StorageCommitmentPushModelInstance as INSTANCE

lock = threading.Lock()


def say(**words):
    with lock:
        print(json.dumps(words), flush=True)


def item(sop_class, instance, reason=None):
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    if reason is not None:
        item.FailureReason = reason
    return item


def ask(port, title, *files):
    known = "--known" in files
    datasets = [pydicom.dcmread(file) for file in files if file != "--known"]
    ae = AE(ae_title=title)
    ae.requested_contexts = StoragePresentationContexts[:100]
    ae.add_requested_context(datasets[0].SOPClassUID)
    ae.add_requested_context(PUSH_MODEL)
    association = ae.associate("127.0.0.1", int(port), ae_title="CDAL")
    assert association.is_established
    for dataset in datasets:
        assert association.send_c_store(dataset).Status == 0
    request = Dataset()
    request.TransactionUID = generate_uid()
    items = [item(dataset.SOPClassUID, dataset.SOPInstanceUID) for dataset in datasets]
    if not known:
        items += [item(datasets[0].SOPClassUID, "2.25.404"), item(CTImageStorage, datasets[0].SOPInstanceUID)]
    request.ReferencedSOPSequence = items
    status, _ = association.send_n_action(request, 1, PUSH_MODEL, INSTANCE)
    say(status=status.get("Status"), transaction=request.TransactionUID)
    association.release()


def hear(port, refusals):
    left = [int(refusals)]

    def on_report(event):
        information = event.event_information
        refuse, left[0] = left[0] > 0, left[0] - 1
        say(
            event=event.event_type,
            refused=refuse,
            role=[[role.sop_class_uid, role.scp_role] for role in event.assoc.requestor.role_selection.values()],
            transaction=information.TransactionUID,
            safe=sorted(i.ReferencedSOPInstanceUID for i in information.get("ReferencedSOPSequence", [])),
            failed=sorted(
                [i.ReferencedSOPInstanceUID, i.FailureReason] for i in information.get("FailedSOPSequence", [])
            ),
        )
        return (0x0110 if refuse else 0x0000), None

    ae = AE(ae_title="MODALITY")
    ae.require_called_aet = True
    ae.add_supported_context(PUSH_MODEL, scu_role=False, scp_role=True)
    say(ready=True)
    ae.start_server(("127.0.0.1", int(port)), evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report)])


def archive(port, report_port, how):
    requests = []

    def on_store(event):
        say(stored=event.request.AffectedSOPInstanceUID)
        return 0x0000

    def on_action(event):
        request = event.action_information
        requests.append(request)
        say(asked=[i.ReferencedSOPInstanceUID for i in request.ReferencedSOPSequence])
        if not (how == "silent" and len(requests) == 1):
            threading.Thread(target=report, args=(event.assoc, request, len(requests) == 1)).start()
        return 0x0000, None

    def report(association, request, first):
        failure = {"loses": 0x0112 if first else None, "conflict": 0x0119}.get(how)
        information = Dataset()
        information.TransactionUID = request.TransactionUID
        items = [item(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID, failure) for i in request.ReferencedSOPSequence]
        setattr(information, "ReferencedSOPSequence" if failure is None else "FailedSOPSequence", items)
        time.sleep(0.1)
        if how != "same":
            ae = AE(ae_title="ARCHIVE")
            ae.add_requested_context(PUSH_MODEL, ImplicitVRLittleEndian)
            role = build_role(PUSH_MODEL, scp_role=True)
            # The listener may be starting again.
            for _ in range(100):
                association = ae.associate("127.0.0.1", int(report_port), ae_title="CDAL", ext_neg=[role])
                if association.is_established:
                    break
                time.sleep(0.1)
        status, _ = association.send_n_event_report(information, 1 if failure is None else 2, PUSH_MODEL, INSTANCE)
        say(acknowledged=status.get("Status"))
        if how != "same":
            association.release()

    ae = AE(ae_title="ARCHIVE")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(PUSH_MODEL)
    handlers = [(evt.EVT_C_STORE, on_store), (evt.EVT_N_ACTION, on_action)]
    say(ready=True)
    ae.start_server(("127.0.0.1", int(port)), evt_handlers=handlers)


{"ask": ask, "hear": hear, "archive": archive}[sys.argv[1]](*sys.argv[2:])
