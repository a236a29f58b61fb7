// The state of the picture, its history, and the link that holds it. The server holds none of it.

const FRESH = {
  v: 1, generator: "", seed: 0, file: null, index: 0, truncation: 1, cutoff: null, label: null, noise: null,
  n: 1, sets: [], moves: [], keep: [], region: null,
};

class Store extends EventTarget {
  state = { ...FRESH };
  #committed = JSON.stringify(FRESH);
  #past = [];
  #future = [];

  /** Change some of the state. Without `commit` it is a moment of a gesture; the history gets its end alone. */
  set(patch, { commit = true } = {}) {
    this.state = { ...this.state, ...patch };
    this.#tell("change", { live: !commit });
    if (commit) this.commit();
  }

  /** Put what stands now into the history. */
  commit() {
    const now = JSON.stringify(this.state);
    if (now === this.#committed) return;
    this.#past.push(this.#committed);
    this.#future = [];
    this.#committed = now;
    this.#tell("commit");
  }

  /** Begin anew from a state, with an empty history. */
  begin(state) {
    this.state = { ...FRESH, ...state };
    this.#committed = JSON.stringify(this.state);
    this.#past = [];
    this.#future = [];
    this.#tell("change", { live: false });
    this.#tell("commit");
  }

  undo() { this.#travel(this.#past, this.#future); }
  redo() { this.#travel(this.#future, this.#past); }
  get canUndo() { return this.#past.length > 0; }
  get canRedo() { return this.#future.length > 0; }

  #travel(from, to) {
    if (!from.length) return;
    to.push(this.#committed);
    this.#committed = from.pop();
    this.state = JSON.parse(this.#committed);
    this.#tell("change", { live: false });
    this.#tell("commit");
  }

  #tell(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
  on(name, f) { this.addEventListener(name, (event) => f(event.detail ?? {})); }
}

export const store = new Store();

// --- the Edit that a state means ---

/** The code that a state starts from, as an Edit writes it. */
export function codesOf(state) {
  const codes = state.file === null ? { seed: state.seed } : { file: state.file, index: state.index };
  if (state.file === null) {
    if (state.index) codes.index = state.index;
    if (state.truncation !== 1) codes.truncation = state.truncation;
    for (const key of ["cutoff", "label", "noise"]) if (state[key] !== null) codes[key] = state[key];
  }
  return codes;
}

/** The Edit that a state means: what `eigenlens edit --edit` reads. */
export function editOf(state, { moves = state.moves } = {}) {
  const edit = { version: 1, generator: state.generator, codes: codesOf(state), moves };
  if (state.keep.length && moves.length) edit.keep = state.keep;
  if (state.region && moves.length) edit.region = state.region;
  return edit;
}

// --- moves ---

const isSame = (move, source, name) => move.directions === source && move.name === name;
export const findMove = (state, source, name) => state.moves.find((move) => isSame(move, source, name));

/** Return the moves with one set; a `by` of 0 takes it out. */
export function withMove(moves, source, name, change) {
  const old = moves.find((move) => isSame(move, source, name));
  const next = change === null ? null : { directions: source, name, ...change };
  const isNothing = next === null || (next.to === undefined && !next.by);
  if (!old) return isNothing ? moves : [...moves, next];
  return isNothing ? moves.filter((move) => move !== old) : moves.map((move) => (move === old ? next : move));
}

// --- the link ---

const pack = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const unpack = (text) => new TextDecoder().decode(Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0)));

/** The hash that holds a state: only what differs from the beginning. */
export function toHash(state) {
  const kept = Object.entries(state).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(FRESH[key]));
  return `#s=${pack(JSON.stringify(Object.fromEntries(kept)))}`;
}

/** Read a hash; null where it holds no state. Values of the wrong kind are left out. */
export function fromHash(hash) {
  const found = /^#s=([\w-]+)$/.exec(hash);
  if (!found) return null;
  try {
    const raw = JSON.parse(unpack(found[1]));
    const kinds = { ...FRESH, file: "", cutoff: 0, label: "", noise: "", region: [] };
    const state = {};
    for (const [key, value] of Object.entries(raw)) {
      if (!(key in kinds)) continue;
      const fits = value === null ? FRESH[key] === null
        : Array.isArray(kinds[key]) ? Array.isArray(value) : key === "label" ? ["string", "number"].includes(typeof value) : typeof value === typeof kinds[key];
      if (fits) state[key] = value;
    }
    return state;
  } catch {
    return null;
  }
}

store.on("commit", () => history.replaceState(null, "", toHash(store.state)));
