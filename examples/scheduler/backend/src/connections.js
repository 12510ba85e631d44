// Connections to the workspace's PostgreSQL and Redis. Their addresses are given in the environment.

import pg from 'pg';
import { createClient } from 'redis';

// A bigint as a number: ids of an example never leave the safe range.
pg.types.setTypeParser(pg.types.builtins.INT8, Number);

function required(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: declare it under \`environment:\` in envforge.yml`);
  return value;
}

/** One connection, for work that holds a lock or a transaction. */
export async function connectDatabase() {
  const client = new pg.Client({ connectionString: required('DATABASE_URL') });
  await client.connect();
  return client;
}

/** A pool. A connection lost while idle is replaced at its next use. */
export function openDatabase() {
  const pool = new pg.Pool({ connectionString: required('DATABASE_URL'), max: 5 });
  pool.on('error', (error) => console.error(`database connection lost: ${error.message}`));
  return pool;
}

/** A cache, or undefined where the workspace has none. What it cannot say or keep is made again. */
export async function openCache() {
  if (!process.env.CACHE_URL) return undefined;
  const client = createClient({ url: process.env.CACHE_URL, disableOfflineQueue: true });
  client.on('error', (error) => console.error(`cache: ${error.message}`));
  await client.connect();
  return {
    get: (key) => client.get(key).catch(() => undefined),
    set: (key, value, options) => client.set(key, value, options).catch(() => undefined),
    close: () => client.close(),
  };
}

/** A Redis client that connects again by itself. `patient`: commands wait for that; otherwise they fail at once. */
export async function openQueue({ patient }) {
  const client = createClient({ url: required('QUEUE_URL'), disableOfflineQueue: !patient });
  client.on('error', (error) => console.error(`queue: ${error.message}`));
  await client.connect();
  return client;
}
