// What needs no server: the rules.

import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import test from 'node:test';
import { BadRequest, titleOf } from '../src/jobs.js';
import { routes } from '../src/routes.js';

test('a title is trimmed', () => {
  assert.equal(titleOf('{"title": "  Water the plants "}'), 'Water the plants');
});

test('a body without a usable title is refused with what to send', () => {
  for (const body of ['', 'no json', 'null', '{}', '{"title": ""}', '{"title": 7}', `{"title": "${'x'.repeat(201)}"}`]) {
    assert.throws(() => titleOf(body), BadRequest, body);
  }
});

async function answer(handler, method, url, body = '') {
  const answered = {};
  const response = { writeHead: (status) => (answered.status = status), end: (text) => (answered.text = text) };
  await handler(Object.assign(Readable.from([Buffer.from(body)]), { method, url }), response);
  return [answered.status, JSON.parse(answered.text)];
}

test('the health page fails while the database does not answer, and tells no address', async () => {
  const database = { query: () => Promise.reject(new Error('connect ECONNREFUSED 127.0.0.1:5432')) };
  const silent = test.mock.method(console, 'error', () => {});
  const [status, body] = await answer(routes(database, { ping: async () => 'PONG' }, {}), 'GET', '/healthz');
  silent.mock.restore();
  assert.equal(status, 503);
  assert.doesNotMatch(body.error, /127\.0\.0\.1/);
});

test('a job that the queue did not take is kept and accepted', async () => {
  const database = { query: async () => ({ rows: [{ id: 7, title: 'x', state: 'waiting' }] }) };
  const silent = test.mock.method(console, 'error', () => {});
  const handler = routes(database, { lPush: () => Promise.reject(new Error('closed')) }, {});
  const [status, body] = await answer(handler, 'POST', '/api/jobs', '{"title": "x"}');
  silent.mock.restore();
  assert.deepEqual([status, body.id], [201, 7]);
});

test('an unknown path is not found', async () => {
  assert.equal((await answer(routes({}, {}, {}), 'GET', '/api/nothing'))[0], 404);
});
