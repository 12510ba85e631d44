// The mailer: takes ids from the queue and sends each waiting job once. What a crash or a lost connection cost is
// found in the table.

import { openDatabase, openQueue } from './src/connections.js';
import { QUEUE, markSent, waitingJobs } from './src/jobs.js';

const database = openDatabase();
const queue = await openQueue({ patient: true });
let stopping = false;

process.once('SIGTERM', () => {
  stopping = true;
  queue.destroy();
});

async function send(id) {
  const title = await markSent(database, id);
  if (title !== undefined) console.log(`sent job ${id}: ${title}`);
}

/** Resolves to nothing when the connection was lost meanwhile. */
async function nextJob() {
  try {
    return Number((await queue.brPop(QUEUE, 0))?.element);
  } catch {
    return undefined;
  }
}

while (!stopping) {
  await queue.ping().catch(() => {});
  for (const id of await waitingJobs(database)) await send(id);
  console.log('waiting for jobs');
  for (let id = await nextJob(); id !== undefined && !stopping; id = await nextJob()) await send(id);
}
await database.end();
console.log('stopped');
