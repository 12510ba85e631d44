// The page: lists the reminders of this workspace's database and schedules new ones, all through same-origin `/api`.

const form = document.querySelector('#new-job');
const rows = document.querySelector('#jobs');
const problem = document.querySelector('#problem');

async function call(method, body) {
  const answer = await fetch('/api/jobs', {
    method,
    headers: body ? { 'content-type': 'application/json' } : {},
    body: body ? JSON.stringify(body) : undefined,
  });
  const text = await answer.text();
  if (!answer.ok) throw new Error(messageOf(text) ?? `the API answered ${answer.status}`);
  return JSON.parse(text);
}

function messageOf(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return undefined;
  }
}

function cell(text) {
  const td = document.createElement('td');
  td.textContent = text;
  return td;
}

const time = (text) => (text ? new Date(text).toLocaleTimeString() : '–');

function show({ jobs }) {
  rows.replaceChildren(
    ...jobs.map((job) => {
      const row = document.createElement('tr');
      row.className = job.state;
      row.append(cell(job.id), cell(job.title), cell(job.state), cell(time(job.created_at)), cell(time(job.sent_at)));
      return row;
    }),
  );
}

async function refresh() {
  try {
    show(await call('GET'));
    problem.hidden = true;
  } catch (error) {
    problem.textContent = `The list could not be read: ${error.message}`;
    problem.hidden = false;
  }
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  try {
    await call('POST', { title: form.elements.title.value });
    form.reset();
  } catch (error) {
    problem.textContent = `Not scheduled: ${error.message}`;
    problem.hidden = false;
    return;
  }
  await refresh();
});

// Only while somebody looks: a page in a background tab asks for nothing.
const timer = setInterval(() => document.visibilityState === 'visible' && refresh(), 2000);
import.meta.hot?.dispose(() => clearInterval(timer));
refresh();
