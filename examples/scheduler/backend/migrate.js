// Applies the SQL files of `migrations/` in the order of their names, each once, each in a transaction of its own.

import { readdir, readFile } from 'node:fs/promises';
import { connectDatabase } from './src/connections.js';

const directory = new URL('./migrations/', import.meta.url);
// Any number: only what keeps two migrations of one database from running at once.
const LOCK = 7_406_001;

const database = await connectDatabase();
try {
  await database.query('SELECT pg_advisory_lock($1)', [LOCK]);
  await database.query(
    'CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())',
  );
  const { rows } = await database.query('SELECT name FROM migrations');
  const applied = new Set(rows.map((row) => row.name));
  const files = (await readdir(directory)).filter((name) => name.endsWith('.sql')).sort();
  for (const name of files.filter((file) => !applied.has(file))) {
    const sql = await readFile(new URL(name, directory), 'utf8');
    try {
      await database.query('BEGIN');
      await database.query(sql);
      await database.query('INSERT INTO migrations (name) VALUES ($1)', [name]);
      await database.query('COMMIT');
    } catch (error) {
      throw new Error(`migrations/${name} was not applied: ${error.message}`, { cause: error });
    }
    console.log(`applied ${name}`);
  }
  console.log(`${files.length} migrations are applied`);
} finally {
  await database.end();
}
