"""The library `kubernetes_asyncio`, with the kubeconfig that KUBECONFIG names and without a setting of its own."""

import asyncio

from kubernetes_asyncio import client, config, watch
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.stream import WsApiClient
from kubernetes_asyncio.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDIN_CHANNEL, STDOUT_CHANNEL
from steps import arguments, has, report, same

NAMESPACE = "default"
ROOT, POD, MARK = arguments()


def config_map(name, value):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data={"key": value})


async def listed(core):
    has([item.metadata.name for item in (await core.list_namespace()).items], "kube-system")


async def missing(core):
    try:
        await core.read_namespaced_config_map("nobody", NAMESPACE)
    except ApiException as error:
        same((error.status, error.reason), (404, "Not Found"))
        has(error.body, '"reason":"NotFound"')
    else:
        raise AssertionError("there is a ConfigMap nobody")


async def write(core):
    name = f"{MARK}-written"
    await core.create_namespaced_config_map(NAMESPACE, config_map(name, "a"))
    await core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"key": "b"}})
    same((await core.read_namespaced_config_map(name, NAMESPACE)).data, {"key": "b"})
    await core.delete_namespaced_config_map(name, NAMESPACE)


async def watched(core):
    name = f"{MARK}-watched"
    await core.create_namespaced_config_map(NAMESPACE, config_map(name, "first"))
    seen = []
    async with watch.Watch().stream(
        core.list_namespaced_config_map,
        NAMESPACE,
        field_selector=f"metadata.name={name}",
        timeout_seconds=20,
    ) as events:
        async for event in events:
            seen.append((event["type"], event["object"].data["key"]))
            if len(seen) == 1:
                await core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"key": "second"}})
            if event["object"].data["key"] == "second":
                break
    same(seen, [("ADDED", "first"), ("MODIFIED", "second")])
    await core.delete_namespaced_config_map(name, NAMESPACE)


async def log(core):
    has(await core.read_namespaced_pod_log(POD, NAMESPACE, tail_lines=1), ":")


async def execute(settings, command, stdin=None):
    """What came by each channel, and the exit code."""
    came = {STDOUT_CHANNEL: "", STDERR_CHANNEL: "", ERROR_CHANNEL: ""}
    async with WsApiClient(configuration=settings) as api:
        opening = await client.CoreV1Api(api).connect_get_namespaced_pod_exec(
            POD,
            NAMESPACE,
            command=command,
            stdin=True,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
        async with opening as socket:
            if stdin is not None:
                await socket.send_bytes(bytes([STDIN_CHANNEL]) + stdin)
            async for message in socket:
                came[message.data[0]] += message.data[1:].decode()
    return came[STDOUT_CHANNEL], came[STDERR_CHANNEL], WsApiClient.parse_error_data(came[ERROR_CHANNEL])


async def executed(core):
    settings = core.api_client.configuration
    script = "read line; echo got $line; echo to stderr >&2"
    came = await execute(settings, ["sh", "-c", script], b"from stdin\n")
    same(came, ("got from stdin\n", "to stderr\n", 0))


async def exit_code(core):
    came = await execute(core.api_client.configuration, ["sh", "-c", "exit 7"])
    same(came, ("", "", 7))


async def root(core):
    async with await config.new_client_from_config(ROOT) as api:
        by_root = client.CoreV1Api(api)
        await listed(by_root)
        await executed(by_root)


async def wrong_token(core):
    settings = client.Configuration()
    await config.load_kube_config(client_configuration=settings)
    settings.api_key["BearerToken"] = "Bearer wrong"
    settings.refresh_api_key_hook = None
    async with client.ApiClient(settings) as api:
        try:
            await client.CoreV1Api(api).list_namespace()
        except ApiException as error:
            same(error.status, 401)
            has(error.body, '"kind":"Status"')
        else:
            raise AssertionError("a wrong token is believed")


async def main():
    await config.load_kube_config()
    async with client.ApiClient() as api:
        core = client.CoreV1Api(api)
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
                await step(core)
            except Exception as error:  # Whatever it is, it is this step's result.
                report(name, error)
            else:
                report(name)


asyncio.run(main())
