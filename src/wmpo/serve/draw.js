// What the parts of the page share: asking the server, films, and traces.

export const page = {about: null, trouble: document.querySelector('#trouble')};

export async function ask(path, fields) {
  const get = fields === undefined;
  let answer;
  try {
    answer = await fetch(path, get ? {} : {
      method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(fields)});
  } catch { throw new Error('The server does not answer. Is the command still running?'); }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

// One thing at a time: while it is awaited the button waits too, and what goes wrong is said.
export async function during(button, says, words, work) {
  button.disabled = true;
  says.textContent = words;
  try { says.textContent = await work() ?? ''; } catch (error) { says.textContent = error.message; }
  button.disabled = false;
}

export const decimals = (value, digits) => (Number(value.toFixed(digits)) + 0).toFixed(digits).replace('-', '−'); // + 0: no −0.0
export const sleep = milliseconds => new Promise(done => setTimeout(done, milliseconds));
export const still = matchMedia('(prefers-reduced-motion: reduce)').matches;

// A film is one picture with its frames below each other; a reel is made of films that follow each other.
export class Reel {
  constructor() { this.frames = []; }
  async add(film) {
    if (!film) return;
    const image = new Image();
    image.src = film.picture;
    await image.decode();
    const height = image.height / film.num_frames;
    for (let i = 0; i < film.num_frames; i++) {
      this.frames.push({image, top: i * height, height, logit: film.logits[i]});
    }
  }
  get logits() { return this.frames.map(frame => frame.logit); }
  paint(canvas, number) {
    const frame = this.frames[Math.min(number, this.frames.length - 1)];
    const box = canvas.parentElement;
    box.classList.toggle('off', !frame);
    box.classList.toggle('called', !!frame && frame.logit !== null && frame.logit > page.about.threshold);
    box.dataset.score = frame && frame.logit !== null ? decimals(frame.logit, 1) : '';
    if (!frame) return;
    const {width} = frame.image, {height} = frame;
    box.style.aspectRatio = `${width} / ${height}`;  // as many squares as there are cameras
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    canvas.getContext('2d').drawImage(frame.image, 0, frame.top, width, height, 0, 0, width, height);
  }
}

const tag = (name, attributes, text = '') =>
  `<${name} ${Object.entries(attributes).map(([key, value]) => `${key}="${value}"`).join(' ')}>${text}</${name}>`;

// lines: [{values, colour, name}] with one value a frame, null where there is none. rule: {value, name} is a level to
// compare with. Of the frame at the cursor, what the classifier looks at is shaded: the last frames, window of them. All
// texts are ours, so they need no escaping.
export function trace(place, title, lines, rule, {cursor = null, window = 0, count = 2, height = 116, bare = false, floor = null} = {}) {
  const width = Math.max(place.clientWidth, 120), left = bare ? 0 : 38, bottom = bare ? 4 : 20;
  const values = lines.flatMap(line => line.values).filter(value => value !== null);
  if (rule) values.push(rule.value);
  if (floor !== null) values.push(floor);
  let low = Math.min(...values), high = Math.max(...values);
  if (!(high > low)) { low -= 1; high += 1; }
  const x = frame => left + (width - left - 6) * frame / Math.max(count - 1, 1);
  const y = value => 6 + (height - 6 - bottom) * (high - value) / (high - low);
  let drawn = '';
  if (!bare) {
    const digits = high - low < 2 ? 2 : 0;
    for (const value of [low, high]) {
      drawn += tag('line', {x1: left, x2: width, y1: y(value), y2: y(value), stroke: 'var(--line)'});
      drawn += tag('text', {x: left - 6, y: y(value) + 4, 'text-anchor': 'end'}, decimals(value, digits));
    }
    drawn += tag('text', {x: left, y: height - 2}, '0');
    drawn += tag('text', {x: width, y: height - 2, 'text-anchor': 'end'},
      `${(count - 1) * page.about.frame_stride} steps`);
  }
  if (rule) {
    drawn += tag('line', {x1: left, x2: width, y1: y(rule.value), y2: y(rule.value), stroke: 'var(--good)',
      'stroke-dasharray': '4 3'});
  }
  for (const {values: line, colour} of lines) {
    const points = line.map((value, frame) => value === null ? null : [x(frame), y(value)]).filter(Boolean);
    drawn += tag('polyline', {points: points.map(point => point.map(n => n.toFixed(1)).join()).join(' '), fill: 'none',
      stroke: `var(--${colour})`, 'stroke-width': bare ? 1.4 : 1.8, 'stroke-linejoin': 'round'});
    for (const [cx, cy] of points.length < 14 ? points : []) {
      drawn += tag('circle', {cx, cy, r: 2.4, fill: `var(--${colour})`});
    }
  }
  if (cursor !== null) {
    const begin = x(Math.max(0, cursor - window + 1));
    if (window) drawn += tag('rect', {x: begin, width: x(cursor) - begin, y: 2, height: height - bottom - 2,
      fill: 'var(--ink)', 'fill-opacity': .08});
    drawn += tag('line', {x1: x(cursor), x2: x(cursor), y1: 2, y2: height - bottom, stroke: 'var(--ink)',
      'stroke-opacity': .5});
  }
  const key = (colour, name) => `<span><i style="background:var(--${colour})"></i>${name}</span>`;
  const legend = lines.map(line => key(line.colour, line.name)).join('') + (rule ? key('good', rule.name) : '');
  place.innerHTML = (bare ? '' : `<h3>${title}</h3><p class=key>${legend}</p>`) +
    tag('svg', {viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': title}, drawn);
}

// The first that shows something is chosen: a solved one, if possible one that nothing has learned from.
export function fill(select, episodes) {
  select.replaceChildren();
  const several = new Set(episodes.map(episode => episode.instruction)).size > 1;
  for (const [number, episode] of episodes.entries()) {
    let group = select.querySelector(`optgroup[data-round="${episode.round}"]`);
    if (!group) {
      group = document.createElement('optgroup');
      const who = episode.policy.startsWith('round') ? `the policy of ${episode.policy}` : `the ${episode.policy} policy`;
      group.label = `round ${episode.round}, played by ${who}`;
      group.dataset.round = episode.round;
      select.append(group);
    }
    const outcome = episode.solved ? `solved after ${episode.steps} steps` : 'not solved';
    const told = several ? `${episode.instruction}, ` : '';
    group.append(new Option(`no. ${number}, ${told}${outcome}${episode.held_out ? ', held out' : ''}`, number));
  }
  const good = [episodes.findIndex(e => e.solved && e.held_out), episodes.findIndex(e => e.solved)].find(i => i >= 0);
  select.value = good ?? 0;
}

export const each = (values, size) => values.flatMap((value, i) => [...Array(size - 1).fill(null), value]);
export const chunk = () => page.about.chunk_size / page.about.frame_stride; // frames
export const draw = () => Math.floor(Math.random() * 2 ** 31);
