// The mailer: takes ids from the queue and sends each waiting job once, as a mail. What a crash or a lost connection
// cost is found in the table.

import { openDatabase, openQueue } from './src/connections.js';
import { QUEUE, markSent, waitingJobs } from './src/jobs.js';
import { openMail, reminder } from './src/mail.js';

const database = openDatabase();
const queue = await openQueue({ patient: true });
const mail = await openMail(process.env.SMTP_URL);
let stopping = false;

process.once('SIGTERM', () => {
  stopping = true;
  queue.destroy();
});

async function send(id) {
  // Marked first: one that cannot be sent is told, and no one is reminded twice.
  const title = await markSent(database, id);
  if (title === undefined) return;
  try {
    await mail.send(reminder(title, process.env.SITE_URL));
    console.log(`sent job ${id}: ${title}`);
  } catch (error) {
    console.error(`job ${id} was not sent: ${error.message}`);
  }
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
mail.close();
await database.end();
console.log('stopped');
