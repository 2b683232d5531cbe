// Play the dream: keys or a policy, the dream alone or reality beside it.
import {page, ask, during, sleep, Reel, trace, chunk, each, draw} from './draw.js';

const part = document.querySelector('#play'), form = part.querySelector('form'), stage = part.querySelector('.stage');
const screens = {dream: document.querySelector('#play-dream'), real: document.querySelector('#play-real')};
const time = document.querySelector('#play-time'), says = document.querySelector('#play-says');
const runs = document.querySelector('#run'), gripperButton = document.querySelector('#gripper');
const KEYS = {arrowleft: 'a', arrowright: 'd', arrowup: 'w', arrowdown: 's'};
const MOVES = {a: [-1, 0, 0], d: [1, 0, 0], w: [0, 1, 0], s: [0, -1, 0], e: [0, 0, 1], q: [0, 0, -1], x: [0, 0, 0]};
const held = new Set();
let dream = null; // {session, reels, doubt, apart, seen}
let gripper = -1, going = false, busy = false;

const world = () => form.elements.world.value;
const driver = () => form.elements.driver.value;

function show(number) {
  for (const name of ['dream', 'real']) dream.reels[name].paint(screens[name], number);
  const count = Math.max(dream.reels.dream.frames.length, dream.reels.real.frames.length);
  time.max = Math.max(count - 1, 0);
  time.value = number;
  const last = Math.ceil(number / chunk()) - 1, doubted = page.about.tokenizer_distance;
  screens.dream.parentElement.classList.toggle('doubted', doubted !== null && dream.doubt[last] > doubted);
  const options = {cursor: number, count: Math.max(count, 2)};
  const lines = [{values: dream.reels.dream.logits, colour: 'dream', name: 'imagined'}];
  if (dream.reels.real.frames.length) lines.push({values: dream.reels.real.logits, colour: 'real', name: 'real'});
  trace(document.querySelector('#play-logits'), 'Success classifier', lines,
    {value: page.about.threshold, name: 'threshold'}, {...options, window: page.about.window});
  const gaps = [{values: [null, ...each(dream.doubt, chunk())], colour: 'dream', name: 'two dreams'}];
  if (dream.apart.some(value => value !== null)) {
    gaps.push({values: [null, ...each(dream.apart, chunk())], colour: 'real', name: 'dream and reality'});
  }
  const known = doubted !== null && {value: doubted, name: 'tokenizer alone'};
  trace(document.querySelector('#play-doubt'), 'Difference of pictures', gaps, known, {...options, floor: 0});
}

function tell() {
  const seen = dream.seen;
  const words = (state, steps) => `· ${state === 'solved' ? 'solved' : state} · ${steps} steps`;
  screens.dream.closest('figure').querySelector('figcaption span').textContent =
    seen ? words(seen.dream_state === 'solved' ? 'called solved' : seen.dream_state, seen.dream_steps) : '· at the start';
  screens.real.closest('figure').querySelector('figcaption span').textContent =
    seen?.real_state ? words(seen.real_state, seen.real_steps) : '';
  screens.real.parentElement.dataset.says =
    world() === 'imagined' ? 'Choose “real beside it” to see what the simulator makes of these actions.' : 'starting the simulator…';
  gripperButton.textContent = gripper > 0 ? 'open' : 'close';
  runs.disabled = driver() === 'keys';
  runs.classList.toggle('on', going);
  runs.textContent = going ? 'pause' : 'play';
}

async function begin() {
  going = false;
  held.clear();
  const begun = await ask('/api/begin', {episode: Number(form.elements.episode.value), draw: draw()});
  dream = {session: begun.session, reels: {dream: new Reel(), real: new Reel()}, doubt: [], apart: [], seen: null};
  await dream.reels.dream.add(begun.film);
  show(0);
  tell();
  if (world() === 'imagined') return '';
  await look();
  return says.textContent;
}

// New frames are shown one after the other, at about the pace of the robot.
async function take(now, seen) {
  if (now !== dream) return;
  let from = Math.max(dream.reels.dream.frames.length, dream.reels.real.frames.length);
  if (seen.dream && seen.dream_steps) dream.doubt.push(seen.doubt);
  if (seen.real?.logits[0] === null) { // reality begins, maybe anew because another page had the simulator
    dream.reels.real = new Reel();
    from = 0;
  }
  await Promise.all([dream.reels.dream.add(seen.dream), dream.reels.real.add(seen.real)]);
  while (dream.apart.length < dream.doubt.length) dream.apart.push(null);
  if (seen.apart !== null && dream.apart.length) dream.apart[dream.apart.length - 1] = seen.apart;
  dream.seen = seen;
  const end = Math.max(dream.reels.dream.frames.length, dream.reels.real.frames.length);
  for (let number = Math.min(from, end - 1); number < end; number++) {
    show(number);
    await sleep(90);
  }
  tell();
  if (seen.problem) {
    form.elements.world.value = 'imagined';
    says.textContent = `Reality cannot be shown: ${seen.problem}`;
    tell();
  } else if (!seen.playing) {
    says.textContent = 'This episode has ended; begin another one' +
      (world() === 'imagined' ? ', or see beside it what reality makes of the same actions.' : '.');
  }
}

async function look() {
  says.textContent = 'The simulator plays the same actions…';
  const now = dream, seen = await ask('/api/real', {session: now.session});
  says.textContent = '';
  await take(now, seen);
}

function direction() {
  const move = [0, 0, 0];
  for (const key of held) MOVES[key].forEach((value, i) => { move[i] = Math.max(-1, Math.min(1, move[i] + value)); });
  return move;
}

// The only place from which steps are asked for: while keys are held or a policy plays, one after the other.
async function loop() {
  if (busy || !dream) return;
  busy = true;
  try {
    while (dream && (driver() === 'keys' ? held.size : going)) {
      if (dream.seen && !dream.seen.playing) break;
      const now = dream;
      await take(now, await ask('/api/step', {session: now.session, driver: driver(), world: world(),
        temperature: Number(form.elements.temperature.value), move: direction(), gripper}));
      for (const key of [...held]) if (!pressed.has(key)) held.delete(key);
    }
  } catch (error) { says.textContent = error.message; }
  going = false;
  held.clear();
  busy = false;
  if (dream) tell();
}

const pressed = new Set(); // a tap is one chunk, also when it is shorter than the server's answer

function press(key) {
  if (!dream) return;
  if (key === ' ') { gripper = -gripper; tell(); key = 'x'; }
  if (!(key in MOVES)) return;
  if (driver() !== 'keys') { form.elements.driver.value = 'keys'; going = false; tell(); }
  pressed.add(key);
  held.add(key);
  loop();
}

stage.addEventListener('keydown', event => {
  const key = KEYS[event.key.toLowerCase()] ?? event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === 'p' && !runs.disabled) runs.click();
  if (!(key in MOVES || key === ' ') || (key === ' ' && event.target !== stage)) return;
  event.preventDefault();
  if (!event.repeat) press(key);
});
addEventListener('keyup', event => pressed.delete(KEYS[event.key.toLowerCase()] ?? event.key.toLowerCase()) || pressed.delete('x'));
addEventListener('blur', () => pressed.clear());
for (const button of part.querySelectorAll('.pad [data-key]')) {
  button.addEventListener('pointerdown', () => { press(button.dataset.key); button.classList.add('held'); });
  button.addEventListener('click', event => { if (event.detail === 0) { press(button.dataset.key); pressed.clear(); } });
  for (const end of ['pointerup', 'pointerleave', 'pointercancel']) {
    button.addEventListener(end, () => { pressed.clear(); button.classList.remove('held'); });
  }
}
runs.addEventListener('click', () => { going = !going; tell(); loop(); });
time.addEventListener('input', () => dream && show(Number(time.value)));
addEventListener('resize', () => dream && show(Number(time.value)));
form.addEventListener('change', event => {
  if (!dream) return;
  if (event.target.name === 'driver') going = driver() !== 'keys';
  tell();
  if (event.target.name === 'driver') loop();
  if (event.target.name === 'world' && world() !== 'imagined' && !busy) {
    busy = true;
    look().catch(error => { says.textContent = error.message; }).finally(() => { busy = false; loop(); });
  }
});
form.addEventListener('submit', event => {
  event.preventDefault();
  during(form.querySelector('.main'), says, 'Beginning…', begin).then(() => stage.focus({preventScroll: true}));
});
document.addEventListener('ready', () => dream || during(form.querySelector('.main'), says, 'Beginning…', begin));
