// What the sliders say: a start and a value for each direction, its history, its link and its Edit.

/** A state is {start, values}: the number of a start code, or "photo", and one strength a direction. */
export function openHistory(first) {
  let past = [], now = first, future = [];
  return {
    get now() { return now; },
    get canUndo() { return past.length > 0; },
    get canRedo() { return future.length > 0; },
    /** Keep a state, unless it is the present one. */
    keep(next) {
      if (same(next, now)) return;
      past.push(now);
      [now, future] = [next, []];
    },
    undo() {
      if (past.length) { future.push(now); now = past.pop(); }
      return now;
    },
    redo() {
      if (future.length) { past.push(now); now = future.pop(); }
      return now;
    },
  };
}

function same(a, b) {
  return a.start === b.start && a.photo === b.photo && a.values.every((value, k) => value === b.values[k]);
}

/** Write a state into what stands after # in the address; a photo's code is too long for that. */
export function toHash(state, directions) {
  const words = [`image=${state.start}`];
  state.values.forEach((value, k) => { if (value) words.push(`${encodeURIComponent(directions[k].name)}=${value}`); });
  return `#${words.join("&")}`;
}

/** Read it back; what is not known is left out. */
export function fromHash(hash, directions, count) {
  const state = { start: 0, photo: null, values: directions.map(() => 0) };
  for (const word of hash.replace(/^#/, "").split("&")) {
    const [key, text] = [word.slice(0, word.lastIndexOf("=")), word.slice(word.lastIndexOf("=") + 1)];
    const value = Number(text);
    let name = "";
    try { name = decodeURIComponent(key); } catch { continue; }
    if (name === "image" && Number.isInteger(value) && value >= 0 && value < count) state.start = value;
    const k = directions.findIndex((each) => each.name === name);
    if (k >= 0 && Number.isFinite(value)) state.values[k] = Math.min(directions[k].high, Math.max(directions[k].low, value));
  }
  return state;
}

/** Return the Edit that makes the picture again with `eigenlens edit --edit`, in the directions' own unit; null for a photo. */
export function toEdit(state, manifest) {
  if (state.start === "photo") return null;
  const moves = manifest.directions
    .map((each, k) => ({ directions: manifest.source, name: each.name, by: state.values[k] * each.units }))
    .filter((move) => move.by);
  return { version: 1, generator: manifest.generator, codes: { ...manifest.codes, index: state.start }, moves };
}

/** Return the same as a command. */
export function toCommand(edit) {
  const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, `'"'"'`)}'`);
  const { seed = 0, index = 0, truncation = 1, label } = edit.codes;
  const words = ["eigenlens edit", quote(edit.generator)];
  if (seed) words.push(`--seed ${seed}`);
  if (index) words.push(`--index ${index}`);
  if (truncation !== 1) words.push(`--truncation ${truncation}`);
  if (label != null) words.push(`--label ${quote(String(label))}`);
  for (const move of edit.moves) words.push(`--move ${quote(`${move.directions}:${move.name} by ${move.by}`)}`);
  return `${words.join(" ")} --out edit.png`;
}
