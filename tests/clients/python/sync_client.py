"""The library `kubernetes`, with the kubeconfig that KUBECONFIG names and without a setting of its own."""

import threading

from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from steps import arguments, has, report, same

NAMESPACE = "default"
ROOT, POD, MARK = arguments()


def config_map(name, value):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data={"key": value})


def listed(core):
    has([item.metadata.name for item in core.list_namespace().items], "kube-system")


def missing(core):
    try:
        core.read_namespaced_config_map("nobody", NAMESPACE)
    except ApiException as error:
        same((error.status, error.reason), (404, "Not Found"))
        has(error.body, '"reason":"NotFound"')
    else:
        raise AssertionError("there is a ConfigMap nobody")


def write(core):
    name = f"{MARK}-written"
    core.create_namespaced_config_map(NAMESPACE, config_map(name, "a"))
    core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"key": "b"}})
    same(core.read_namespaced_config_map(name, NAMESPACE).data, {"key": "b"})
    core.delete_namespaced_config_map(name, NAMESPACE)


def watched(core):
    name = f"{MARK}-watched"
    core.create_namespaced_config_map(NAMESPACE, config_map(name, "first"))
    seen = []
    later = None
    for event in watch.Watch().stream(
        core.list_namespaced_config_map,
        NAMESPACE,
        field_selector=f"metadata.name={name}",
        timeout_seconds=20,
    ):
        seen.append((event["type"], event["object"].data["key"]))
        if later is None:
            patch = {"data": {"key": "second"}}
            later = threading.Thread(target=core.patch_namespaced_config_map, args=(name, NAMESPACE, patch))
            later.start()
        if event["object"].data["key"] == "second":
            break
    later.join()
    same(seen, [("ADDED", "first"), ("MODIFIED", "second")])
    core.delete_namespaced_config_map(name, NAMESPACE)


def log(core):
    has(core.read_namespaced_pod_log(POD, NAMESPACE, tail_lines=1), ":")


def execute(core, command):
    return stream(
        core.connect_get_namespaced_pod_exec,
        POD,
        NAMESPACE,
        command=command,
        stdin=True,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )


def executed(core):
    shell = execute(core, ["sh", "-c", "read line; echo got $line; echo to stderr >&2"])
    shell.write_stdin("from stdin\n")
    shell.run_forever(timeout=20)
    same((shell.read_stdout(), shell.read_stderr()), ("got from stdin\n", "to stderr\n"))


def exit_code(core):
    shell = execute(core, ["sh", "-c", "exit 7"])
    shell.run_forever(timeout=20)
    same(shell.returncode, 7)


def root(core):
    by_root = client.CoreV1Api(config.new_client_from_config(ROOT))
    listed(by_root)
    executed(by_root)


def wrong_token(core):
    settings = client.Configuration()
    config.load_kube_config(client_configuration=settings)
    settings.api_key["BearerToken"] = "Bearer wrong"
    settings.refresh_api_key_hook = None
    try:
        client.CoreV1Api(client.ApiClient(settings)).list_namespace()
    except ApiException as error:
        same(error.status, 401)
        has(error.body, '"kind":"Status"')
    else:
        raise AssertionError("a wrong token is believed")


config.load_kube_config()
CORE = client.CoreV1Api()
for name, step in {
    "list": listed,
    "missing": missing,
    "write": write,
    "watch": watched,
    "log": log,
    "exec": executed,
    "exit-code": exit_code,
    "root": root,
    "wrong-token": wrong_token,
}.items():
    try:
        step(CORE)
    except Exception as error:  # Whatever it is, it is this step's result.
        report(name, error)
    else:
        report(name)
