// What is watched: the live sections of the report, replays, and groups of siblings.
import {page, ask, during, decimals, Reel, trace, fill, chunk, each, draw, still} from './draw.js';

const POLL = 3000, FRAME = 120; // milliseconds
const live = document.querySelector('#live'), links = document.querySelector('#links');
let stamp = '', reels = [];

async function refresh() {
  const view = await ask(`/api/live?${stamp}`);
  page.trouble.hidden = true;
  if (view.stamp === stamp) return;
  document.querySelector('#hero').innerHTML = view.hero;
  const open = [...live.querySelectorAll('details')].map(part => part.open);
  live.innerHTML = view.sections.map(
    ({anchor, title, body}) => `<section id="${anchor}"><h2>${title}</h2>${body}</section>`).join('');
  live.querySelectorAll('details').forEach((part, i) => { part.open = open[i] ?? false; });
  links.querySelectorAll('.of-live').forEach(link => link.remove());
  for (const {anchor} of view.sections) {
    const link = Object.assign(document.createElement('a'), {href: `#${anchor}`, className: 'of-live'});
    link.textContent = anchor[0].toUpperCase() + anchor.slice(1);
    links.append(link);
  }
  await meet();
  stamp = view.stamp;
}

// The dream is there as soon as a round is complete.
async function meet() {
  const before = page.about?.round ?? 0;
  page.about = await ask('/api/about', {});
  document.title = `${page.about.name} · wmpo serve`;
  document.querySelector('#foot').innerHTML = 'Everything here is read from the run’s folder; nothing leaves this machine.' +
    (page.about.report ? ' <a href="/run/report.html">The whole report</a>' : '');
  for (const part of document.querySelectorAll('#play, #siblings, #replay')) {
    const empty = part.querySelector('.empty');
    empty.hidden = page.about.round > 0;
    empty.textContent = 'There is no dream yet: it is here as soon as the first round is complete.';
    for (const other of part.children) if (!other.matches('h2, .lead, .empty')) other.hidden = !page.about.round;
  }
  if (page.about.round === before) return;
  for (const select of document.querySelectorAll('select[name=episode]')) fill(select, page.about.episodes);
  for (const input of document.querySelectorAll('input[name=temperature]')) input.value = page.about.temperature;
  document.dispatchEvent(new Event('ready'));
}

async function poll() {
  try { if (!document.hidden) await refresh(); } catch (error) {
    page.trouble.hidden = false;
    page.trouble.textContent = error.message;
  }
  setTimeout(poll, POLL);
}

// Replays: a real episode and its actions imagined.
const part = document.querySelector('#replay'), form = part.querySelector('form');
const time = document.querySelector('#replay-time'), runs = document.querySelector('#replay-run');
const screens = {real: document.querySelector('#replay-real'), dream: document.querySelector('#replay-dream')};
let shown = null, playing = !still, at = 0;

function show(number) {
  shown.real.paint(screens.real, number);
  shown.dream.paint(screens.dream, number);
  time.value = at = number;
  const options = {cursor: number, count: shown.dream.frames.length};
  trace(document.querySelector('#replay-logits'), 'Success classifier', [
    {values: shown.real.logits, colour: 'real', name: 'real'},
    {values: shown.dream.logits, colour: 'dream', name: 'imagined'},
  ], {value: page.about.threshold, name: 'threshold'}, {...options, window: page.about.window});
  const floor = page.about.tokenizer_distance;
  const doubt = shown.found.doubt[Math.ceil(number / chunk()) - 1];
  screens.dream.parentElement.classList.toggle('doubted', floor !== null && doubt > floor);
  trace(document.querySelector('#replay-doubt'), 'Difference of pictures', [
    {values: [null, ...each(shown.found.apart, chunk())], colour: 'real', name: 'dream and reality'},
    {values: [null, ...each(shown.found.doubt, chunk())], colour: 'dream', name: 'two dreams'},
  ], floor !== null && {value: floor, name: 'tokenizer alone'}, {...options, floor: 0});
}

async function replay() {
  const found = await ask('/api/replay', {episode: Number(form.elements.episode.value)});
  const next = {found, real: new Reel(), dream: new Reel()};
  await Promise.all([next.real.add(found.real), next.dream.add(found.imagined)]);
  shown = next;
  time.max = shown.dream.frames.length - 1;
  const words = (who, frame) => frame ? `${who} after ${frame * page.about.frame_stride} steps` : `not ${who}`;
  screens.real.closest('figure').querySelector('figcaption span').textContent =
    `· ${words('solved', found.solved_frame)} · ${words('called solved', found.called_real)}`;
  screens.dream.closest('figure').querySelector('figcaption span').textContent =
    `· ${words('called solved', found.called_imagined)}`;
  show(still ? shown.dream.frames.length - 1 : 0);
}

// Siblings: a group with advantages.
const family = document.querySelector('#siblings'), asked = family.querySelector('form');
const grid = family.querySelector('.group');

async function imagine() {
  const group = await ask('/api/siblings', {episode: Number(asked.elements.episode.value), draw: draw(),
    policy: asked.elements.policy.value, temperature: Number(asked.elements.temperature.value)});
  const films = await Promise.all(group.siblings.map(async sibling => {
    const reel = new Reel();
    await reel.add(sibling.film);
    return {sibling, reel, canvas: document.createElement('canvas')};
  }));
  const count = Math.max(...films.map(film => film.reel.frames.length));
  grid.replaceChildren();
  for (const {sibling, reel, canvas} of films) {
    const figure = Object.assign(document.createElement('figure'), {className: 'screen'});
    figure.innerHTML = '<div class=frame></div><div class=trace></div><figcaption></figcaption>';
    figure.firstChild.append(canvas);
    const tone = sibling.advantage > 0 ? 'good' : sibling.advantage < 0 ? 'bad' : 'unsure';
    const advantage = `${sibling.advantage > 0 ? '+' : ''}${decimals(sibling.advantage, 2)}`;
    figure.lastChild.innerHTML =
      `<span>${sibling.solved ? 'solved' : 'not solved'}, ${sibling.steps} steps</span><b class=${tone}>A ${advantage}</b>`;
    grid.append(figure);
    trace(figure.querySelector('.trace'), 'classifier', [{values: reel.logits, colour: 'dream', name: ''}],
      {value: page.about.threshold, name: ''}, {count, height: 44, bare: true});
    reel.paint(canvas, still ? count : 0);
  }
  reels = films.map(({reel, canvas}) => ({reel, canvas, count}));
  const solved = group.siblings.filter(sibling => sibling.solved).length;
  return `${solved} of ${group.siblings.length} solved` +
    (solved && solved < group.siblings.length ? '.' : ': no advantage for anybody, so this group would be replaced by another one.') +
    ' The line below a film is the classifier’s score, the dashed one its threshold.';
}

// Films run only while they are on the screen; their end is held for a moment.
const seen = new Set();
const watcher = new IntersectionObserver(
  changes => changes.forEach(({target, isIntersecting}) => seen[isIntersecting ? 'add' : 'delete'](target)));
[grid, time].forEach(place => watcher.observe(place));
let tick = 0;
setInterval(() => {
  tick++;
  for (const {reel, canvas, count} of still || !seen.has(grid) ? [] : reels) reel.paint(canvas, tick % (count + 8));
  if (!playing || !shown || !seen.has(time)) return;
  const last = shown.dream.frames.length - 1;
  if (++at <= last) show(at);
  if (at > last + 8) show(0);
}, FRAME);

const says = document.createElement('p'); // of replays
says.className = 'note';
time.after(says);
time.addEventListener('input', () => { playing = false; runs.textContent = 'play'; if (shown) show(Number(time.value)); });
runs.addEventListener('click', () => { playing = !playing; runs.textContent = playing ? 'pause' : 'play'; });
form.addEventListener('submit', event => {
  event.preventDefault();
  during(form.querySelector('.main'), says, 'Imagining…', replay);
});
asked.addEventListener('submit', event => {
  event.preventDefault();
  during(asked.querySelector('.main'), document.querySelector('#group-says'), 'Imagining a group…', imagine);
});
document.addEventListener('ready', () => shown || during(form.querySelector('.main'), says, 'Imagining…', replay));
runs.textContent = playing ? 'pause' : 'play';
poll();
