// Watching episodes and saying which were solved.
import {page, ask, sleep, Reel} from './draw.js';

const SPEEDS = [1, 2, 4, 0.5];
const find = selector => document.querySelector(selector);
const film = find('#film'), time = find('#time'), says = find('#says'), places = find('#episodes');
let progress = null, reel = null, number = -1, at = 0, playing = false, speed = 0, busy = false, turn = 0;
const ahead = new Map(); // episodes on their way

function load(episode) {
  if (!ahead.has(episode)) {
    if (ahead.size > 3) ahead.delete(ahead.keys().next().value);
    const coming = (async () => {
      const shown = await ask('/api/show', {episode}), reel = new Reel();
      for (const part of shown.films) await reel.add(part);
      return {reel, instruction: shown.instruction};
    })();
    coming.catch(() => ahead.delete(episode)); // to be asked for again
    ahead.set(episode, coming);
  }
  return ahead.get(episode);
}

function show(frame) {
  at = Math.max(0, Math.min(frame, reel.frames.length - 1));
  reel.paint(film, at);
  time.value = at;
  find('#when').textContent = `step ${at} of ${reel.frames.length - 1}`;
  find('#here').disabled = at === 0;
}

function play(on) {
  playing = on;
  find('#run').firstChild.textContent = on ? 'pause ' : 'play ';
}

const told = mark => !mark ? '' : !mark.success ? 'failed' : mark.solved_at ? `solved at step ${mark.solved_at}` : 'solved';

function tell() {
  const done = progress.marks.filter(Boolean), solved = done.filter(mark => mark.success).length;
  find('#count').textContent = `${done.length} of ${progress.marks.length} labelled, ${solved} solved`;
  progress.marks.forEach((mark, i) => {
    const place = places.children[i];
    place.className = [mark ? mark.success ? 'is-solved' : 'is-failed' : '', i === number ? 'now' : ''].join(' ');
    place.title = `episode ${i}: ${told(mark) || 'no label'}`;
  });
  const mark = progress.marks[number], complete = done.length === progress.marks.length;
  find('#where').textContent = `episode ${number}${mark ? `, ${told(mark)}` : ''}`;
  find('#done').hidden = !complete;
  if (complete) find('#done').replaceChildren('Every episode has a label. Take them in with ', Object.assign(
    document.createElement('code'), {textContent: progress.then}));
}

// The label counts from here on; what was asked for before and comes later is not shown.
async function go(episode) {
  const mine = ++turn;
  number = episode;
  tell();
  play(false);
  reel = null;
  const shown = await load(episode);
  if (mine !== turn) return;
  ({reel} = shown);
  find('#sentence').textContent = shown.instruction || 'no sentence';
  const {image, height} = reel.frames[0];
  film.parentElement.style.aspectRatio = `${image.width} / ${height}`;
  time.max = reel.frames.length - 1;
  show(0);
  play(true);
  if (episode + 1 < progress.marks.length) load(episode + 1).catch(() => {});
}

// The next one without a label, then those that were skipped.
function next() {
  const {marks} = progress, order = marks.map((_, i) => (number + 1 + i) % marks.length);
  return order.find(i => !marks[i]);
}

async function label(success, solved_at) {
  const episode = number;
  progress = await ask('/api/mark', {episode, success, solved_at});
  says.textContent = `episode ${episode}: ${told(progress.marks[episode])}`;
  const after = next();
  if (after === undefined) { tell(); play(false); } else await go(after);
}

const keys = {
  f: () => label(0, 0),
  s: () => label(1, 0),
  h: () => at > 0 && label(1, at),
  u: async () => {
    progress = await ask('/api/undo', {});
    says.textContent = `episode ${progress.undone}: label taken back`;
    await go(progress.undone);
  },
  b: () => go(Math.max(number - 1, 0)),
  n: () => go((number + 1) % progress.marks.length),
  r: () => { show(0); play(true); },
  ' ': () => { if (!playing && at === reel.frames.length - 1) show(0); play(!playing); },
  x: () => {
    speed = (speed + 1) % SPEEDS.length;
    find('#speed').firstChild.textContent = `speed ${SPEEDS[speed]}x `;
  },
  arrowleft: () => { play(false); show(at - 1); },
  arrowright: () => { play(false); show(at + 1); },
};

// One thing at a time, and nothing about an episode that is not shown yet, except to leave it.
async function act(key) {
  if (!progress || (busy && !'bn'.includes(key)) || (!reel && !'ubn'.includes(key))) return;
  busy = true;
  page.trouble.hidden = true;
  try { await keys[key](); } catch (error) { trouble(error); }
  busy = false;
}

function trouble(error) {
  page.trouble.hidden = false;
  page.trouble.textContent = error.message;
}

document.addEventListener('keydown', event => {
  const key = event.key.toLowerCase();
  if (!(key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (!event.repeat || key.startsWith('arrow')) act(key);
});
document.querySelectorAll('[data-key]').forEach(button => button.addEventListener('click', () => {
  button.blur(); // space is for the film
  act(button.dataset.key);
}));
time.addEventListener('input', () => { if (reel) { play(false); show(Number(time.value)); } });
places.addEventListener('click', event => {
  const place = [...places.children].indexOf(event.target.closest('li'));
  if (place >= 0 && !busy) go(place).catch(trouble);
});

async function run() {
  for (;;) {
    await sleep(1000 / (progress.fps * SPEEDS[speed]));
    if (!playing || !reel) continue;
    if (at < reel.frames.length - 1) show(at + 1); else play(false);
  }
}

try {
  progress = await ask('/api/progress', {});
  find('#name').textContent = progress.name;
  document.title = `${progress.name} · wmpo label`;
  find('#file').textContent = progress.file;
  places.replaceChildren(...progress.marks.map(() => document.createElement('li')));
  run();
  await go(next() ?? 0);
} catch (error) { trouble(error); }
