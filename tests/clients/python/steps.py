"""Runs the steps of a client and prints one line for each: `ok STEP`, or `failed STEP: why`."""

import sys


def report(name, error=None):
    why = "" if error is None else ": " + " ".join(f"{type(error).__name__}: {error}".split())[:600]
    print(f"{'ok' if error is None else 'failed'} {name}{why}", flush=True)


def arguments():
    """What the test says: the kubeconfig by the address without a path, the pod, and a name for objects."""
    root, pod, mark = sys.argv[1:]
    return root, pod, mark


def same(found, wanted):
    if found != wanted:
        raise AssertionError(f"{found!r} is not {wanted!r}")


def has(found, wanted):
    if wanted not in found:
        raise AssertionError(f"no {wanted!r} in {found!r}")
