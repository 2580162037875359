'use strict';
const $ = id => document.getElementById(id);
const data = JSON.parse($('data').textContent);
const { tokens, bits, ranks, states, hidden, features } = data;
const T = tokens.length, STEPS = 45, MOST_BITS = 8, PLACES = 12;
const isBytes = data.unit === 'bytes', one = isBytes ? 'byte' : 'character';
const count = n => n.toLocaleString('en');
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const make = (name, content = '', className = '') => {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...[content].flat());
  return element;
};

// What is shown, and what stands in the address.
const now = { view: 'unit', layer: 0, state: 'h', unit: 0, sort: '', at: 0, select: null, by: 'end', theme: '' };
let hover = null, similar = [], place = -1;

// Characters as they can be seen.

const INVISIBLE = /^[\p{C}\p{Zl}\p{Zp}]$/u;
const SIGNS = { '\n': '↵', '\t': '⇥', ' ': '␣', '\u00a0': '⍽', '\u007f': '␡' };
function glyph(c) {
  if (SIGNS[c]) return SIGNS[c];
  const code = c.codePointAt(0) ?? 0;
  if (c.length === 1 && code < 32) return String.fromCodePoint(0x2400 + code);
  if (INVISIBLE.test(c)) return '⟨' + code.toString(16).toUpperCase().padStart(4, '0') + '⟩';
  return /^\p{M}/u.test(c) ? '◌' + c : c;
}
const shown = token => isBytes && token > 127 ? data.vocabulary[token] : glyph(data.vocabulary[token]);
const characters = new Map(data.characters.map(([at, length, c]) => [at, [length, c]]));
function named(i) {
  const label = data.vocabulary[tokens[i]];
  if (isBytes) return '0x' + tokens[i].toString(16).padStart(2, '0').toUpperCase();
  return 'U+' + (label.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, '0');
}

// The text: a line is an element, a token another one in it.

const box = $('text'), spans = [], lines = [];
function write() {
  const all = document.createDocumentFragment();
  let line = null, within = 0;
  for (let i = 0; i < T; i++) {
    if (!line) {
      line = make('div');
      line.dir = 'auto';
      lines.push({ element: line, start: i, end: i });
    }
    const span = document.createElement('span'), c = data.vocabulary[tokens[i]];
    if (isBytes && tokens[i] > 127) {
      const known = characters.get(i);
      if (known) within = known[0];
      span.textContent = known ? (INVISIBLE.test(known[1]) ? glyph(known[1]) : known[1]) : within > 0 ? '·' : c;
      if (!known) span.className = 'odd';
      within--;
    } else {
      span.textContent = c === ' ' || /^\p{M}/u.test(c) ? c : glyph(c);
      if (span.textContent !== c) span.className = c === '\t' ? 'odd tab' : 'odd';
    }
    span.i = i;
    spans.push(span);
    line.append(span);
    lines[lines.length - 1].end = i + 1;
    if (c === '\n') {
      all.append(line);
      line = null;
    }
  }
  if (line) all.append(line);
  box.append(all);
}
const lineOf = i => first(lines.length, k => lines[k].end > i);
function first(n, holds) {
  let low = 0, high = n;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}
// The tokens in view and somewhat around it: by lines, then within the first and the last, of which there may be one alone.
function inView() {
  const { top, bottom } = box.getBoundingClientRect();
  const reaches = element => element.getBoundingClientRect().bottom >= top - 200;
  const isPast = element => element.getBoundingClientRect().top > bottom + 200;
  const from = Math.min(first(lines.length, k => reaches(lines[k].element)), lines.length - 1);
  const to = Math.max(from + 1, first(lines.length, k => isPast(lines[k].element)));
  const within = ({ start, end }, holds) => start + first(end - start, i => holds(spans[start + i]));
  const start = Math.min(within(lines[from], reaches), T - 1);
  return [start, Math.max(start + 1, within(lines[to - 1], isPast))];
}

// States: a byte for each value, unit by unit.

const decoded = new Map();
function values(k) {
  if (!decoded.has(k)) {
    const text = $(states[k].name + states[k].layer).textContent, all = new Int8Array(text.length);
    for (let i = 0; i < text.length; i++) {
      const code = text.charCodeAt(i);
      all[i] = code - 35 - (code > 60) - STEPS;
    }
    decoded.set(k, all);
  }
  return decoded.get(k);
}
const current = () => states.findIndex(state => state.layer === now.layer && state.name === now.state);
const value = i => values(current())[now.unit * T + i] * states[current()].steps[now.unit];

// Colours: blue and orange, which all eyes tell apart; violet for surprise.

const ENDS = {
  light: { paper: [255, 255, 255], low: [92, 156, 232], high: [246, 152, 58], bits: [196, 122, 226] },
  dark: { paper: [27, 30, 35], low: [36, 100, 186], high: [176, 88, 14], bits: [138, 58, 168] },
};
const dark = matchMedia('(prefers-color-scheme: dark)');
const theme = () => now.theme || (dark.matches ? 'dark' : 'light');
function palette() {
  const { paper, low, high, bits } = ENDS[theme()];
  const mix = (end, share) => 'rgb(' + paper.map((p, k) => Math.round(p + (end[k] - p) * share)).join() + ')';
  const all = [];
  for (let q = -STEPS; q <= STEPS; q++) all.push(now.view === 'unit' ? mix(q < 0 ? low : high, Math.abs(q) / STEPS) : mix(bits, (q + STEPS) / 2 / STEPS));
  return all;
}
// What the ends of the colours stand for: as far as the unit goes, on both sides of 0 if it is on both.
function range() {
  const column = values(current()).subarray(now.unit * T, (now.unit + 1) * T);
  const low = column.reduce((least, q) => Math.min(least, q), STEPS), high = column.reduce((most, q) => Math.max(most, q), -STEPS);
  return low < 0 && high > 0 || low === high ? [-STEPS, STEPS] : [low, high];
}
let colours = [], version = 0, ends = [-STEPS, STEPS];
const painted = new Uint32Array(T);
function paint() {
  const [from, to] = inView(), column = now.view === 'unit' ? values(current()) : null, offset = now.unit * T;
  const scale = 2 * STEPS / (ends[1] - ends[0]);
  for (let i = from; i < to; i++) {
    if (painted[i] === version) continue;
    painted[i] = version;
    const level = column ? Math.round((column[offset + i] - ends[0]) * scale) : Math.round(2 * STEPS * clamp((bits[i] ?? 0) / MOST_BITS, 0, 1));
    spans[i].style.backgroundColor = colours[level];
  }
}
function recolour() {
  const start = performance.now();
  colours = palette();
  ends = range();
  version++;
  paint();
  document.documentElement.dataset.paintMs = (performance.now() - start).toFixed(1);
}

// What is said of the unit, in the order of the list.

let order = [];
// What has to be remembered is of more interest than what was just read, where it explains a unit about as well.
const worth = (explained, f) => Math.abs(explained[f]) * (f < data.remembered ? 1.5 : 1);
const best = explained => explained.reduce((most, share, f) => worth(explained, f) > worth(explained, most) ? f : most, 0);
const arrow = share => share < 0 ? '↓' : '↑';
function sorted() {
  const { explained } = states[current()];
  const f = features.indexOf(now.sort), all = [...Array(hidden).keys()];
  if (now.sort === 'number' || !features.length) return all;
  const score = unit => worth(explained[unit], f >= 0 ? f : best(explained[unit]));
  return all.sort((a, b) => score(b) - score(a) || a - b);
}
function listUnits() {
  order = sorted();
  const { explained } = states[current()], f = features.indexOf(now.sort);
  $('units').replaceChildren(...order.map(unit => {
    const button = make('button', [make('b', String(unit))]);
    button.type = 'button';
    button.unit = unit;
    if (features.length) {
      const feature = f >= 0 ? f : best(explained[unit]), share = explained[unit][feature], filled = make('i');
      filled.style.width = 100 * Math.abs(share) + '%';
      button.append(make('span', [filled], 'share'), make('em', Math.abs(share).toFixed(2)), make('span', arrow(share) + ' ' + features[feature]));
    }
    return make('li', [button]);
  }));
  $('slider').max = hidden - 1;
  $('unit').max = hidden - 1;
}
function sayUnit() {
  const explained = states[current()].explained[now.unit], step = states[current()].steps[now.unit];
  const isUnit = now.view === 'unit';
  $('unitbar').hidden = !isUnit;
  if (isUnit) {
    const tops = [...features.keys()].sort((a, b) => worth(explained, b) - worth(explained, a)).slice(0, 3);
    const says = tops.filter((f, k) => k === 0 || Math.abs(explained[f]) >= 0.05).flatMap((f, k) =>
      [k ? ' · ' : '', make('b', Math.abs(explained[f]).toFixed(2)), ' ' + arrow(explained[f]) + ' ' + features[f]]);
    $('why').replaceChildren('Unit ' + now.unit + (features.length ? ' goes with ' : ''), ...says);
  } else {
    const known = bits.filter(b => b !== null), mean = known.reduce((sum, b) => sum + b, 0) / Math.max(known.length, 1);
    const rights = ranks.filter(rank => rank === 1).length;
    $('why').replaceChildren('Surprise: ', make('b', mean.toFixed(2)), ' bits a ' + one + ' on average; the likeliest came ', make('b', Math.round(100 * rights / Math.max(known.length, 1)) + '%'), ' of the time');
  }
  const digits = step * STEPS < 10 ? 2 : 1, signed = q => (q < 0 ? '−' : '+') + Math.abs(step * q).toFixed(digits);
  $('low').textContent = isUnit ? signed(ends[0]) : '0 bits';
  $('high').textContent = isUnit ? signed(ends[1]) : MOST_BITS + ' and more';
  const scale = $('scale').getContext('2d');
  colours.forEach((colour, k) => { scale.fillStyle = colour; scale.fillRect(2 * k, 0, 2, 1); });
  $('slider').value = order.indexOf(now.unit);
  $('slider').setAttribute('aria-valuetext', 'unit ' + now.unit);
  if (document.activeElement !== $('unit')) $('unit').value = now.unit;
  const list = $('units'), button = list.children[order.indexOf(now.unit)].firstChild;
  list.querySelector('[aria-current]')?.removeAttribute('aria-current');
  button.setAttribute('aria-current', 'true');
  const top = button.offsetTop - list.offsetTop;
  if (top < list.scrollTop || top + 30 > list.scrollTop + list.clientHeight) list.scrollTop = top - 60;
}

// What is said of a character.

const percent = share => (100 * share).toFixed(share < 0.1 ? 1 : 0) + '%';
function sayHere() {
  const i = hover ?? now.at, code = make('div', shown(tokens[i]), 'glyph'), say = make('div', '', 'say');
  const known = isBytes && [...characters].find(([at, [length]]) => at <= i && i < at + length);
  say.append(one[0].toUpperCase() + one.slice(1) + ' ' + count(data.from + i) + ', ' + named(i) + (known ? ' of ' + known[1][1] : ''), make('br'));
  if (bits[i] === null) say.append('the first: nothing foretold it');
  else say.append(make('b', bits[i].toFixed(2)), ' bits, ' + (ranks[i] === 1 ? 'the likeliest' : 'the ' + count(ranks[i]) + nth(ranks[i]) + ' likeliest'));
  say.append(make('br'), 'unit ' + now.unit + ' is ', make('b', value(i).toFixed(3)), ', |' + now.state + '| is ', make('b', states[current()].norms[i].toFixed(2)));
  const list = make('ol', '', 'next'), came = i + 1 < T ? tokens[i + 1] : -1;
  const row = (token, share, text) => {
    const filled = make('i'), item = make('li', [make('code', shown(token)), make('div', [filled], 'track'), make('span', text)], token === came ? 'came' : '');
    filled.style.width = 100 * share + '%';
    list.append(item);
  };
  let isThere = false;
  for (let k = i * data.most; k < (i + 1) * data.most; k++) {
    const token = data.likeliest[k], share = data.shares[k] / 1e4;
    isThere ||= token === came;
    row(token, share, (token === came ? 'came ' : '') + percent(share));
  }
  if (came >= 0 && !isThere) row(came, 2 ** -bits[i + 1], ranks[i + 1] + nth(ranks[i + 1]) + ' ' + percent(2 ** -bits[i + 1]));
  $('here').replaceChildren(make('div', [code, say], 'top'), make('h2', 'Likeliest next'), list);
}
const nth = n => (n % 100 > 10 && n % 100 < 14 ? 'th' : ['th', 'st', 'nd', 'rd'][n % 10] ?? 'th');

// Charts.

function canvas(element) {
  const ratio = devicePixelRatio || 1, { width, height } = element.getBoundingClientRect();
  element.width = Math.round(width * ratio);
  element.height = Math.round(height * ratio);
  const pen = element.getContext('2d');
  pen.scale(ratio, ratio);
  return [pen, width, height];
}
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name);
function drawNorms() {
  const { norms } = states[current()], [pen, width, height] = canvas($('norms'));
  // A text's first states are short: a few places do not set the scale.
  const sizes = Float64Array.from(norms).sort(), low = sizes[Math.floor(T / 500)], high = sizes[T - 1];
  const x = i => i / Math.max(T - 1, 1) * width, y = norm => 5 + (height - 14) * (1 - Math.max(norm - low, 0) / (high - low || 1));
  const band = (from, to, fill, top, tall) => { pen.fillStyle = fill; pen.fillRect(x(from), top, Math.max(x(to) - x(from), 2), tall); };
  band(...inView(), colour('--line'), 0, height);
  pen.strokeStyle = colour('--accent');
  pen.lineWidth = 1;
  pen.beginPath();
  const columns = Math.min(Math.floor(width), T);
  for (let c = 0; c < columns; c++) {
    const from = Math.floor(c * T / columns), to = Math.max(from + 1, Math.floor((c + 1) * T / columns));
    let least = Infinity, most = -Infinity;
    for (let i = from; i < to; i++) { least = Math.min(least, norms[i]); most = Math.max(most, norms[i]); }
    pen.lineTo(x(from), y(most));
    pen.lineTo(x(from), y(least));
  }
  pen.stroke();
  for (const { start, end } of similar) band(start, end, colour('--hit'), height - 5, 5);
  if (now.select) band(now.select[0], now.select[1], colour('--accent'), height - 5, 5);
  band(hover ?? now.at, hover ?? now.at, colour('--ink'), 0, height);
  const says = 'Length of ' + now.state + ' after each ' + one + ', ' + sizes[0].toFixed(2) + ' to ' + high.toFixed(2);
  $('normsays').textContent = says + '; click to go there';
  $('norms').setAttribute('aria-label', says);
}
const GATES = { r: 'r, reset', z: 'z, update', i: 'i, input', f: 'f, forget', o: 'o, output', h: 'h, the state' };
function drawGates() {
  const gates = data.gates.filter(gate => gate.layer === now.layer);
  const [line, accent, card, right] = ['--line', '--accent', '--card', '--right'].map(colour);
  if ($('gates').children.length !== gates.length) {
    $('gates').replaceChildren(...gates.map(() => make('figure', [make('canvas'), make('figcaption')])));
  }
  gates.forEach((gate, k) => {
    const figure = $('gates').children[k], board = figure.firstChild, [pen, width, height] = canvas(board);
    const x = share => 6 + share * (width - 12), y = share => height - 6 - share * (height - 12);
    pen.strokeStyle = line;
    pen.strokeRect(x(0), y(1), x(1) - x(0), y(0) - y(1));
    pen.beginPath();
    pen.moveTo(x(0), y(1));
    pen.lineTo(x(1), y(0));
    pen.stroke();
    const dot = (unit, radius, fill) => {
      pen.fillStyle = fill;
      pen.beginPath();
      pen.arc(x(gate.low[unit]), y(gate.high[unit]), radius, 0, 7);
      pen.fill();
    };
    pen.globalAlpha = 0.45;
    for (let unit = 0; unit < hidden; unit++) dot(unit, 2.2, accent);
    pen.globalAlpha = 1;
    dot(now.unit, 6, card);
    dot(now.unit, 4.5, right);
    figure.lastChild.textContent = GATES[gate.name] ?? gate.name;
    board.setAttribute('role', 'img');
    board.setAttribute('aria-label', 'Gate ' + gate.name + ': unit ' + now.unit + ' is ' + gate.below + ' ' + percent(gate.low[now.unit]) + ' and ' + gate.above + ' ' + percent(gate.high[now.unit]) + ' of the time');
    board.onclick = event => {
      const at = board.getBoundingClientRect();
      const far = unit => Math.hypot(x(gate.low[unit]) - event.clientX + at.left, y(gate.high[unit]) - event.clientY + at.top);
      setUnit([...Array(hidden).keys()].reduce((near, unit) => far(unit) < far(near) ? unit : near, 0));
    };
  });
  if (gates.length) {
    $('gatesays').textContent = '→ share of time ' + gates[0].below + ', ↑ ' + gates[0].above + '. Unit ' + now.unit + ': '
      + gates.map(gate => gate.name + ' ' + percent(gate.low[now.unit]) + ' and ' + percent(gate.high[now.unit])).join('; ');
  }
}

// Places where the state is like that of what is selected.

const lengths = new Map(), means = new Map();
function meansOf(k) {
  if (!means.has(k)) {
    const all = values(k), mean = new Float64Array(hidden);
    for (let j = 0; j < hidden; j++) {
      let sum = 0;
      for (let i = j * T; i < (j + 1) * T; i++) sum += all[i];
      mean[j] = sum / T;
    }
    means.set(k, mean);
  }
  return means.get(k);
}
// Squares of the lengths of the mean states of all windows of `n`, by their last place.
function squares(k, n) {
  const key = k + ' ' + n;
  if (!lengths.has(key)) {
    const all = values(k), { steps } = states[k], mean = meansOf(k), square = new Float64Array(T);
    for (let j = 0; j < hidden; j++) {
      const weight = steps[j] ** 2, m = mean[j], column = all.subarray(j * T, (j + 1) * T);
      let sum = 0;
      for (let i = 0; i < T; i++) {
        sum += column[i] - (i >= n ? column[i - n] : 0);
        const d = sum / n - m;
        square[i] += weight * d * d;
      }
    }
    if (lengths.size > 8) lengths.clear();
    lengths.set(key, square);
  }
  return lengths.get(key);
}
function findSimilar() {
  similar = [];
  place = -1;
  if (!now.select) return;
  const k = current(), [start, end] = now.select, length = end - start, n = now.by === 'mean' ? length : 1;
  const all = values(k), { steps } = states[k], mean = meansOf(k), square = squares(k, n), product = new Float64Array(T);
  let constant = 0;
  for (let j = 0; j < hidden; j++) {
    const column = all.subarray(j * T, (j + 1) * T);
    let asked = 0;
    for (let i = end - n; i < end; i++) asked += column[i];
    const weight = steps[j] ** 2 * (asked / n - mean[j]);
    constant += weight * mean[j];
    for (let i = 0; i < T; i++) product[i] += weight * column[i];
  }
  const cosine = new Float64Array(T);
  for (let i = 0, sum = 0; i < T; i++) {
    sum += product[i] - (i >= n ? product[i - n] : 0);
    cosine[i] = (sum / n - constant) / Math.sqrt(square[i] * square[end - 1] || 1);
  }
  const places = [];
  for (let i = length - 1; i < T; i++) places.push(i);
  places.sort((a, b) => cosine[b] - cosine[a]);
  for (const i of places) {
    const span = { start: i + 1 - length, end: i + 1, cosine: cosine[i] };
    const meets = other => span.start < other.end && other.start < span.end;
    if (!meets({ start, end }) && !similar.some(meets)) similar.push(span);
    if (similar.length === PLACES) break;
  }
}
const CONTEXT = 8, PIECE = 20;
const piece = (from, to) => tokens.slice(Math.max(from, 0), to).map((token, k) => {
  const i = Math.max(from, 0) + k;
  if (isBytes && token > 127) return characters.has(i) ? characters.get(i)[1] : '';
  return data.vocabulary[token] === ' ' ? ' ' : shown(token);
}).join('');
function listSimilar() {
  $('similarsays').textContent = now.select
    ? 'to ' + count(now.select[1] - now.select[0]) + ' ' + (now.select[1] - now.select[0] === 1 ? one : data.unit) + ' from ' + count(data.from + now.select[0]) + '; cosine of ' + now.state + ', layer ' + now.layer
    : 'Select some of the text: where the network was in a like state is listed here.';
  $('similar').replaceChildren(...similar.map(({ start, end, cosine }, k) => {
    const text = make('bdi', [end - start > PIECE ? '' : piece(start - CONTEXT, start), make('u', (end - start > PIECE ? '…' : '') + piece(Math.max(start, end - PIECE), end)), piece(end, end + CONTEXT)]);
    const button = make('button', [make('em', cosine.toFixed(2)), text]);
    button.type = 'button';
    button.title = one + ' ' + count(data.from + start);
    button.onclick = () => goPlace(k);
    if (k === place) button.setAttribute('aria-current', 'true');
    return make('li', [button]);
  }));
}
let marked = [];
function mark() {
  for (const span of marked) span.classList.remove('hit', 'picked');
  marked = [];
  const add = (from, to, name) => spans.slice(from, to).forEach(span => { span.classList.add(name); marked.push(span); });
  similar.forEach(({ start, end }) => add(start, end, 'hit'));
  if (now.select) add(...now.select, 'picked');
}
function goPlace(k) {
  if (!similar.length) return;
  place = (k + similar.length) % similar.length;
  moveTo(similar[place].end - 1, false, true);
  listSimilar();
}

// Changes.

let frame = 0, drawn = '';
function draw() {
  frame = 0;
  paint();
  drawNorms();
  const asked = [now.layer, now.unit, theme(), innerWidth].join();
  if (asked !== drawn) drawGates();
  drawn = asked;
}
const later = () => { frame ||= requestAnimationFrame(draw); };
function save() {
  const { view, layer, state, unit, sort, at, select, by, theme } = now;
  const all = { view: view === 'unit' ? '' : view, unit, layer, state: states.length > data.layers ? state : '', sort, at, select: select ? select.join('-') : '', by: by === 'end' ? '' : by, theme };
  const hash = Object.entries(all).filter(([, value]) => value !== '').map(([name, value]) => name + '=' + encodeURIComponent(value)).join('&');
  try { history.replaceState(null, '', '#' + hash); } catch { /* A browser that guards the addresses of files. */ }
}
function load() {
  const asked = new URLSearchParams(location.hash.slice(1)), number = (name, most) => clamp(parseInt(asked.get(name)) || 0, 0, most);
  now.view = asked.get('view') === 'surprise' ? 'surprise' : 'unit';
  now.layer = number('layer', data.layers - 1);
  now.state = states.some(({ name }) => name === asked.get('state')) ? asked.get('state') : 'h';
  now.sort = features.includes(asked.get('sort')) || asked.get('sort') === 'number' ? asked.get('sort') : '';
  now.unit = asked.has('unit') ? number('unit', hidden - 1) : sorted()[0];
  now.by = asked.get('by') === 'mean' ? 'mean' : 'end';
  now.theme = ['light', 'dark'].includes(asked.get('theme')) ? asked.get('theme') : '';
  const span = /^(\d+)-(\d+)$/.exec(asked.get('select') ?? '');
  now.select = span && +span[1] < +span[2] && +span[2] <= T ? [+span[1], +span[2]] : null;
  now.at = asked.has('at') ? number('at', T - 1) : now.select ? now.select[1] - 1 : 0;
  anchor = now.select ? now.select[0] : null;
}
function choices(id, all, chosen, choose) {
  const isNew = $(id).children.length !== all.length;
  if (isNew) {
    $(id).replaceChildren(...all.map(([value, text]) => {
      const button = make('button', text);
      button.type = 'button';
      button.onclick = () => choose(value);
      return button;
    }));
  }
  [...$(id).children].forEach((button, k) => button.setAttribute('aria-pressed', all[k][0] === chosen));
}
function controls() {
  choices('view', [['unit', 'Unit'], ['surprise', 'Surprise']], now.view, view => { now.view = view; show(); });
  const layers = data.layers > 1 ? [...Array(data.layers).keys()].map(layer => [layer, 'Layer ' + layer]) : [];
  choices('layer', layers, now.layer, layer => { now.layer = layer; change(); });
  choices('state', states.length > data.layers ? [['h', 'Hidden h'], ['c', 'Cell c']] : [], now.state, state => { now.state = state; change(); });
  choices('by', [['end', 'State at the end'], ['mean', 'Mean over the span']], now.by, by => { now.by = by; select(); });
  $('sort').value = now.sort;
}
// Another unit, another view.
function show() {
  const { dataset } = document.documentElement;
  if (dataset.theme !== theme()) dataset.theme = theme();
  controls();
  recolour();
  sayUnit();
  sayHere();
  later();
  save();
}
// Other states.
function change() {
  listUnits();
  findSimilar();
  mark();
  listSimilar();
  show();
}
function select() {
  controls();
  findSimilar();
  mark();
  listSimilar();
  later();
  save();
}
function setUnit(unit) {
  now.unit = clamp(unit, 0, hidden - 1);
  now.view = 'unit';
  show();
  say();
}
const stepUnit = by => setUnit(order[(order.indexOf(now.unit) + by + hidden) % hidden]);
function say() {
  const i = now.at;
  $('said').textContent = shown(tokens[i]) + ', ' + (now.view === 'unit' ? 'unit ' + now.unit + ': ' + value(i).toFixed(2) : (bits[i] ?? 0).toFixed(1) + ' bits');
}
let anchor = null, waits = 0, cursor = null;
function moveTo(i, selects, isFar = false) {
  i = clamp(i, 0, T - 1);
  if (selects) {
    anchor ??= now.at;
    now.select = [Math.min(anchor, i), Math.max(anchor, i) + 1];
    clearTimeout(waits);
    waits = setTimeout(select, 120);
    mark();
  }
  now.at = i;
  hover = null;
  cursor?.classList.remove('at');
  cursor = spans[i];
  cursor.classList.add('at');
  reveal(isFar);
  // Lines that have not been seen are of their true height once they are.
  if (isFar) requestAnimationFrame(() => requestAnimationFrame(() => reveal(true)));
  paint();
  sayHere();
  say();
  later();
  save();
}
function reveal(isFar) {
  const { top: above, height: tall } = cursor.getBoundingClientRect();
  const top = above - box.getBoundingClientRect().top + box.scrollTop;
  if (top >= box.scrollTop + 30 && top + tall <= box.scrollTop + box.clientHeight - 30) return;
  box.scrollTop = isFar ? top - box.clientHeight / 3 : top < box.scrollTop + 30 ? top - 30 : top + tall + 30 - box.clientHeight;
}
function clear() {
  anchor = now.select = null;
  getSelection()?.removeAllRanges();
  select();
}
// The place in the row above or below that is nearest.
function beside(i, by) {
  const { left, top, height } = spans[i].getBoundingClientRect();
  for (let k = i + by, row = null, found = null; ; k += by) {
    if (k < 0 || k >= T) return found ?? (by < 0 ? 0 : T - 1);
    const at = spans[k].getBoundingClientRect();
    if (Math.abs(at.top - top) < height / 2) continue;
    row ??= at.top;
    if (Math.abs(at.top - row) >= height / 2) return found;
    if (found === null || Math.abs(at.left - left) < Math.abs(spans[found].getBoundingClientRect().left - left)) found = k;
  }
}

// What a user does.

function keys(event) {
  if (event.altKey || event.metaKey || $('help').open) return;
  const target = event.target, isField = target.matches('input, select');
  const inText = target === box, ends = lines[lineOf(now.at)];
  const moves = inText && {
    ArrowLeft: () => now.at - 1, ArrowRight: () => now.at + 1,
    ArrowUp: () => beside(now.at, -1), ArrowDown: () => beside(now.at, 1),
    Home: () => event.ctrlKey ? 0 : ends.start, End: () => event.ctrlKey ? T - 1 : ends.end - 1,
  }[event.key];
  if (moves) {
    event.preventDefault();
    if (!event.shiftKey) anchor = null;
    moveTo(moves(), event.shiftKey);
    return;
  }
  if (event.ctrlKey || isField && (target.type !== 'range' || event.key.startsWith('Arrow'))) return;
  const done = {
    '[': () => stepUnit(-1), ']': () => stepUnit(1), ',': () => stepUnit(-1), '.': () => stepUnit(1),
    u: () => { now.view = 'unit'; show(); }, s: () => { now.view = 'surprise'; show(); },
    l: () => { now.layer = (now.layer + 1) % data.layers; change(); },
    c: () => { now.state = now.state === 'h' && states.length > data.layers ? 'c' : 'h'; change(); },
    n: () => goPlace(place + 1), p: () => goPlace(place < 0 ? -1 : place - 1),
    t: swapTheme, '?': () => $('help').showModal(), Escape: clear,
  }[event.key];
  if (done) {
    event.preventDefault();
    done();
  }
}
const swapTheme = () => { now.theme = theme() === 'dark' ? 'light' : 'dark'; show(); };
const indexAt = node => (node?.nodeType === Node.TEXT_NODE ? node.parentNode : node)?.i;

function start() {
  document.title = data.name + ' · elman look';
  $('name').textContent = data.name;
  const range = T < data.total ? count(T) + ' of ' + count(data.total) + ' ' + data.unit + ', from ' + count(data.from) : count(T) + ' ' + data.unit;
  $('about').textContent = range + '. ' + data.model;
  $('sort').append(new Option('anything, best first', ''), ...features.map(name => new Option(name, name)), new Option('(by number)', 'number'));
  write();
  load();
  change();
  moveTo(now.at, false, true);
  document.addEventListener('keydown', keys);
  box.addEventListener('scroll', later, { passive: true });
  box.addEventListener('pointerover', event => {
    if (event.pointerType === 'touch' || event.target.i === undefined) return;
    hover = event.target.i;
    sayHere();
    later();
  });
  box.addEventListener('pointerleave', () => { hover = null; sayHere(); later(); });
  box.addEventListener('click', event => {
    if (event.target.i === undefined || !getSelection().isCollapsed) return;
    anchor = event.shiftKey ? anchor ?? now.at : null;
    moveTo(event.target.i, event.shiftKey);
  });
  document.addEventListener('selectionchange', () => {
    const chosen = getSelection();
    if (!chosen || chosen.isCollapsed) return;
    const [a, b] = [indexAt(chosen.anchorNode), indexAt(chosen.focusNode)];
    if (a === undefined || b === undefined) return;
    // An end that lies before its character does not take that in.
    const to = Math.max(a, b), last = (b >= a ? chosen.focusOffset : chosen.anchorOffset) === 0 && a !== b ? to - 1 : to;
    anchor = Math.min(a, b);
    now.select = [anchor, last + 1];
    clearTimeout(waits);
    waits = setTimeout(() => { select(); moveTo(last, false); }, 200);
  });
  $('slider').addEventListener('input', () => setUnit(order[$('slider').value]));
  $('unit').addEventListener('input', () => { if ($('unit').value !== '') setUnit(+$('unit').value | 0); });
  $('unit').addEventListener('blur', () => { $('unit').value = now.unit; });
  $('previous').onclick = () => stepUnit(-1);
  $('next').onclick = () => stepUnit(1);
  $('sort').addEventListener('change', () => { now.sort = $('sort').value; listUnits(); setUnit(order[0]); });
  $('units').addEventListener('click', event => {
    const button = event.target.closest('button');
    if (button) setUnit(button.unit);
  });
  $('norms').addEventListener('click', event => {
    const { left, width } = $('norms').getBoundingClientRect();
    moveTo(Math.round((event.clientX - left) / width * (T - 1)), false, true);
  });
  $('theme').onclick = swapTheme;
  $('keys').onclick = () => $('help').showModal();
  dark.addEventListener('change', show);
  addEventListener('hashchange', () => { load(); change(); moveTo(now.at, false, true); });
  addEventListener('resize', later);
  document.documentElement.dataset.ready = 'yes';
}
start();
