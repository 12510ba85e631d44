// The page: lists the reminders of this workspace's database and schedules new ones, all through same-origin `/api`.
// Pictures go straight to the workspace's storage and come from there, by addresses that `/api` signs.

const form = document.querySelector('#new-job');
const rows = document.querySelector('#jobs');
const problem = document.querySelector('#problem');

async function call(method, body, path = '/api/jobs') {
  const answer = await fetch(path, {
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

const section = document.querySelector('#pictures');
const picture = document.querySelector('#picture');
const gallery = document.querySelector('#gallery');

async function showPictures() {
  const { storage, pictures } = await call('GET', undefined, '/api/pictures');
  section.hidden = !storage;
  gallery.replaceChildren(
    ...pictures.map(({ key, url }) => Object.assign(document.createElement('img'), { src: url, alt: key })),
  );
}

picture.addEventListener('change', async () => {
  const [file] = picture.files;
  if (!file) return;
  try {
    const { upload } = await call('POST', { type: file.type }, '/api/pictures');
    const answer = await fetch(upload, { method: 'PUT', body: file });
    if (!answer.ok) throw new Error(`the storage answered ${answer.status}`);
    picture.value = '';
    await showPictures();
  } catch (error) {
    problem.textContent = `Not sent: ${error.message}`;
    problem.hidden = false;
  }
});

showPictures().catch((error) => console.error(error));

// Only while somebody looks: a page in a background tab asks for nothing.
const timer = setInterval(() => document.visibilityState === 'visible' && refresh(), 2000);
import.meta.hot?.dispose(() => clearInterval(timer));
refresh();
