// What needs no server: the rules.

import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import test from 'node:test';
import { BadRequest, titleOf } from '../src/jobs.js';
import { reminder } from '../src/mail.js';
import { endingOf, keysOf } from '../src/pictures.js';
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

test('only pictures are taken, and only our own keys are shown', () => {
  assert.equal(endingOf('{"type": "image/png"}'), 'png');
  for (const body of ['', '{}', '{"type": "text/html"}', '{"type": "constructor"}']) assert.throws(() => endingOf(body), BadRequest);
  const listing = '<Key>pictures/1-a.png</Key><Key>pictures/2-b.png</Key><Key>other/3.png</Key><Key>pictures/../x</Key>';
  assert.deepEqual(keysOf(listing), ['pictures/2-b.png', 'pictures/1-a.png']);
});

test('a mail says what it reminds of', () => {
  const mail = reminder('Water the plants', 'https://example.com');
  assert.match(mail.subject, /Water the plants/);
  assert.match(mail.text, /https:\/\/example\.com/);
});

test('an unknown path is not found', async () => {
  assert.equal((await answer(routes({}, {}, {}), 'GET', '/api/nothing'))[0], 404);
});
