// What needs the database: runs in the runtime layer, inside a transaction that is rolled back.

import assert from 'node:assert/strict';
import test from 'node:test';
import { addJob, listJobs, markSent, waitingJobs } from '../src/jobs.js';

const skip = process.env.DATABASE_URL ? false : 'DATABASE_URL is not set: `envforge run --service backend test unit` sets it';

test('a job waits until it is sent, and is sent once', { skip }, async () => {
  const { connectDatabase } = await import('../src/connections.js');
  const database = await connectDatabase();
  try {
    await database.query('BEGIN');
    const job = await addJob(database, 'a test');
    assert.equal(job.state, 'waiting');
    assert.ok((await waitingJobs(database)).includes(job.id));
    assert.equal(await markSent(database, job.id), 'a test');
    assert.equal(await markSent(database, job.id), undefined);
    assert.equal((await listJobs(database)).find((one) => one.id === job.id).state, 'sent');
  } finally {
    await database.query('ROLLBACK');
    await database.end();
  }
});
