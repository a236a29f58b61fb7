// One strip at a time, in an order of the rater's own; votes live in localStorage until they are downloaded.
const about = JSON.parse(document.getElementById('study').textContent);
const part = id => document.getElementById(id);
const store = 'eigenlens-study-' + about.study;
let state = { rater: '', order: [], place: 0, votes: {} };

// A hash of a text, and a small generator of numbers in [0, 1) from it: the same rater gets the same order again.
function randomFrom(text) {
  let hash = 2166136261;
  for (const char of text) hash = Math.imul(hash ^ char.codePointAt(0), 16777619);
  return () => {
    hash = (hash + 0x6d2b79f5) | 0;
    let t = Math.imul(hash ^ (hash >>> 15), 1 | hash);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(names, random) {
  const order = [...names];
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function keep() {
  try { localStorage.setItem(store, JSON.stringify(state)); } catch { /* a browser may forbid it; the votes stay in the page */ }
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(store));
    if (kept && kept.order.length === Object.keys(about.strips).length) state = kept;
  } catch { /* nothing usable is kept */ }
}

function show(id) {
  for (const each of ['start', 'trial', 'end']) part(each).hidden = each !== id;
}

function showTrial() {
  if (state.place >= state.order.length) { show('end'); return; }
  const item = state.order[state.place];
  const vote = state.votes[item];
  show('trial');
  part('strip').src = about.strips[item];
  part('text').value = vote ? vote.text : '';
  part('done').value = Object.keys(state.votes).length;
  part('back').disabled = state.place === 0;
  part('next').disabled = !vote;
  for (const button of document.querySelectorAll('[data-score]'))
    button.setAttribute('aria-pressed', String(Boolean(vote) && vote.score === Number(button.dataset.score)));
}

function vote(score) {
  const item = state.order[state.place];
  state.votes[item] = { item, score, text: part('text').value, place: state.place };
  keep();
  showTrial();
}

function note() {
  const given = state.votes[state.order[state.place]];
  if (given) { given.text = part('text').value; keep(); }
}

function move(by) {
  note();
  state.place = Math.max(0, state.place + by);
  keep();
  showTrial();
}

function votesFile() {
  return JSON.stringify({
    format: about.format, study: about.study, rater: state.rater,
    votes: state.order.filter(item => item in state.votes).map(item => state.votes[item]),
  }, null, 1);
}

part('begin').addEventListener('submit', event => {
  event.preventDefault();
  const rater = part('rater').value.trim();
  if (!rater) return;
  if (rater !== state.rater) {
    state = { rater, order: shuffled(Object.keys(about.strips).sort(), randomFrom(about.study + rater)), place: 0, votes: {} };
  }
  keep();
  showTrial();
});
for (const button of document.querySelectorAll('[data-score]'))
  button.addEventListener('click', () => vote(Number(button.dataset.score)));
part('text').addEventListener('change', note);
part('back').addEventListener('click', () => move(-1));
part('next').addEventListener('click', () => move(1));
part('again').addEventListener('click', () => { state.place = 0; showTrial(); });
part('save').addEventListener('click', () => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([votesFile()], { type: 'application/json' }));
  link.download = 'votes-' + state.rater.replace(/[^\w-]+/g, '-') + '.json';
  link.click();
  URL.revokeObjectURL(link.href);
});
document.addEventListener('keydown', event => {
  if (part('trial').hidden || event.target === part('text')) return;
  if ('12345'.includes(event.key)) vote(Number(event.key));
  if (event.key === 'Enter' && !part('next').disabled) move(1);
});

restore();
part('rater').value = state.rater;
