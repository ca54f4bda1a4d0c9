// The library `@kubernetes/client-node`, with the kubeconfig that KUBECONFIG names and without a setting of its own. Prints
// one line for each step: `ok STEP`, or `failed STEP: why`.
// usage: node client.mjs KUBECONFIG-BY-THE-ADDRESS-WITHOUT-A-PATH POD MARK

import assert from 'node:assert/strict';
import { PassThrough, Writable } from 'node:stream';
import * as k8s from '@kubernetes/client-node';

const NAMESPACE = 'default';
const [ROOT, POD, MARK] = process.argv.slice(2);

const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);

function configMap(name, value) {
  return { metadata: { name }, data: { key: value } };
}

/// A stream, and all that was written to it.
function collector() {
  const sink = new Writable({
    write(chunk, _encoding, done) {
      sink.text += chunk;
      done();
    },
  });
  sink.text = '';
  return sink;
}

async function listed(api) {
  const { items } = await api.listNamespace();
  assert.ok(items.some((item) => item.metadata.name === 'kube-system'), 'no kube-system');
}

async function missing() {
  await assert.rejects(core.readNamespacedConfigMap({ name: 'nobody', namespace: NAMESPACE }), (error) => {
    assert.equal(error.code, 404);
    assert.match(error.body, /"reason":"NotFound"/);
    return true;
  });
}

async function write() {
  const name = `${MARK}-written`;
  await core.createNamespacedConfigMap({ namespace: NAMESPACE, body: configMap(name, 'a') });
  await core.replaceNamespacedConfigMap({ name, namespace: NAMESPACE, body: configMap(name, 'b') });
  const found = await core.readNamespacedConfigMap({ name, namespace: NAMESPACE });
  assert.deepEqual(found.data, { key: 'b' });
  await core.deleteNamespacedConfigMap({ name, namespace: NAMESPACE });
}

async function watched() {
  const name = `${MARK}-watched`;
  await core.createNamespacedConfigMap({ namespace: NAMESPACE, body: configMap(name, 'first') });
  const seen = [];
  await new Promise((resolve, reject) => {
    const patience = setTimeout(() => reject(new Error(`only seen: ${JSON.stringify(seen)}`)), 20_000);
    const finish = (error) => {
      clearTimeout(patience);
      error ? reject(error) : resolve();
    };
    const event = (phase, object, open) => {
      seen.push([phase, object.data.key]);
      if (seen.length === 1) {
        const body = configMap(name, 'second');
        core.replaceNamespacedConfigMap({ name, namespace: NAMESPACE, body }).catch(finish);
      } else {
        open.abort();
        finish();
      }
    };
    let open;
    new k8s.Watch(config)
      .watch(
        `/api/v1/namespaces/${NAMESPACE}/configmaps`,
        { fieldSelector: `metadata.name=${name}` },
        (phase, object) => event(phase, object, open),
        (error) => seen.length < 2 && finish(error ?? new Error('the watch ended')),
      )
      .then((controller) => (open = controller), finish);
  });
  assert.deepEqual(seen, [['ADDED', 'first'], ['MODIFIED', 'second']]);
  await core.deleteNamespacedConfigMap({ name, namespace: NAMESPACE });
}

async function log() {
  const sink = collector();
  await new k8s.Log(config).log(NAMESPACE, POD, 'main', sink, { tailLines: 1 });
  if (!sink.writableFinished) await new Promise((resolve) => sink.on('close', resolve).on('finish', resolve));
  assert.match(sink.text, /:/);
}

/// Standard output, standard error and the status of a command in the pod.
async function execute(settings, command, input) {
  const [stdout, stderr] = [collector(), collector()];
  const stdin = new PassThrough();
  const exec = new k8s.Exec(settings);
  const status = await new Promise((resolve, reject) => {
    const patience = setTimeout(() => reject(new Error('exec did not end')), 20_000);
    const ended = (status) => {
      clearTimeout(patience);
      resolve(status);
    };
    exec.exec(NAMESPACE, POD, 'main', command, stdout, stderr, stdin, false, ended).then(
      () => input && stdin.write(input),
      (error) => reject(error.message ? error : new Error(JSON.stringify(error))),
    );
  });
  return { stdout: stdout.text, stderr: stderr.text, status };
}

async function executed(settings) {
  const script = 'read line; echo got $line; echo to stderr >&2';
  const came = await execute(settings, ['sh', '-c', script], 'from stdin\n');
  assert.deepEqual([came.stdout, came.stderr, came.status.status], ['got from stdin\n', 'to stderr\n', 'Success']);
}

async function exitCode() {
  const { status } = await execute(config, ['sh', '-c', 'exit 7']);
  assert.equal(status.status, 'Failure');
  assert.deepEqual(status.details.causes, [{ reason: 'ExitCode', message: '7' }]);
}

async function root() {
  const byRoot = new k8s.KubeConfig();
  byRoot.loadFromFile(ROOT);
  await listed(byRoot.makeApiClient(k8s.CoreV1Api));
  await executed(byRoot);
}

async function wrongToken() {
  const { clusters, contexts, currentContext } = config;
  const wrong = new k8s.KubeConfig();
  wrong.loadFromOptions({ clusters, contexts, currentContext, users: [{ ...config.users[0], token: 'wrong' }] });
  await assert.rejects(wrong.makeApiClient(k8s.CoreV1Api).listNamespace(), (error) => {
    // It keeps no body of a 401.
    assert.equal(error.code, 401);
    return true;
  });
}

for (const [name, step] of Object.entries({
  list: () => listed(core),
  missing,
  write,
  watch: watched,
  log,
  exec: () => executed(config),
  'exit-code': exitCode,
  root,
  'wrong-token': wrongToken,
})) {
  try {
    await step();
    console.log(`ok ${name}`);
  } catch (error) {
    console.log(`failed ${name}: ${String(error.stack ?? error).replace(/\s+/g, ' ').slice(0, 600)}`);
  }
}
process.exit(0);
