// One slider for every direction: drag, wheel, arrow keys, typed number, double-click to zero.

import { h, complain, shown, debounced, grey } from "./dom.js";
import { get, post } from "./api.js";
import { store, editOf, findMove, withMove } from "./store.js";
import { Strip } from "./strip.js";
import { openMenu } from "./menu.js";

const SORTS = { layer: "by layer", effect: "by effect", importance: "by importance", quality: "by quality", name: "by name", changed: "changed first" };
const keyOf = (source, name) => `${source}\n${name}`;

export class Sliders extends EventTarget {
  #tables = new Map();       // source -> what /api/directions says
  #rows = new Map();         // key -> Row
  #order = "";
  view = { sort: "effect", search: "", changed: false, unit: "sigma", pins: [] };

  constructor(place) {
    super();
    Object.assign(this.view, JSON.parse(localStorage.getItem("eigenlens.view") ?? "{}"), { search: "", changed: false });
    this.search = h("input", {
      type: "search", placeholder: "Search", "aria-label": "Search directions",
      oninput: debounced(() => this.#look({ search: this.search.value.toLowerCase() }), 80),
    });
    this.sort = h("select", { "aria-label": "Sort", onchange: () => this.#look({ sort: this.sort.value }) },
      Object.entries(SORTS).map(([value, text]) => h("option", { value, selected: value === this.view.sort }, text)));
    this.changedOnly = h("button", { "aria-pressed": "false", onclick: () => this.#look({ changed: !this.view.changed }) }, "Changed");
    this.unit = h("select", { "aria-label": "Unit", title: "σ: standard deviations of the space. Effect: the change of a pixel that a move makes.", onchange: () => this.#look({ unit: this.unit.value }) },
      h("option", { value: "sigma" }, "σ"), h("option", { value: "effect", selected: this.view.unit === "effect" }, "effect"));
    this.reset = h("button", { title: "Set every slider to zero (0)", onclick: () => this.zeroAll() }, "Reset all");
    this.extra = h("span", { class: "row" });
    this.list = h("div", { class: "axes" });
    this.count = h("span", { class: "quiet", role: "status" });
    place.append(h("div", { class: "bar" }, this.search, this.sort, this.unit, this.changedOnly, this.reset, this.extra), this.list);
    this.strip = new Strip();
    store.on("change", () => this.update());
  }

  table(source) { return this.#tables.get(source); }

  /** Take tables that came with the page. */
  know(tables, generator) {
    for (const table of tables) this.#tables.set(table.source, { ...table, generator });
  }

  /** Show the sets that the state names, reading those that are new. */
  async load() {
    const { sets, generator } = store.state;
    const wanted = sets.filter((source) => this.#tables.get(source)?.generator !== generator);
    for (const [key, row] of this.#rows) if (wanted.includes(row.source)) this.#rows.delete(key);
    if (wanted.length) this.#order = "";  // new rows may have the old names
    const read = await Promise.allSettled(wanted.map((source) => get("/api/directions", { generator, source })));
    read.forEach((result, k) => {
      if (result.status === "fulfilled") this.#tables.set(wanted[k], { ...result.value, generator });
      else complain(result.reason);
    });
    this.dispatchEvent(new CustomEvent("loaded"));
    const failed = wanted.filter((_, k) => read[k].status === "rejected");
    if (failed.length) store.set({ sets: store.state.sets.filter((each) => !failed.includes(each)), moves: store.state.moves.filter((move) => !failed.includes(move.directions)) });
    this.render();
  }

  /** Read a set again, since its figures have changed. */
  async reload(source) {
    this.#tables.delete(source);
    for (const [key, row] of this.#rows) if (row.source === source) this.#rows.delete(key);
    await this.load();
  }

  /** A further slider of a direction, for another page. */
  extraRow(source, row) {
    this.extraRows = [new Row(this, source, row)];
    return this.extraRows[0];
  }

  /** Pins go with a set that has become another file. */
  carryPins(from, to, rename) {
    this.view.pins = this.view.pins.map((key) => {
      const [source, name] = key.split("\n");
      return source === from ? keyOf(to, rename[name] ?? name) : key;
    });
    localStorage.setItem("eigenlens.view", JSON.stringify(this.view));
  }

  rowsShown() {
    const { search, sort, changed, pins } = this.view;
    const all = store.state.sets.flatMap((source) => (this.#tables.get(source)?.rows ?? []).map((row) => ({ source, row })));
    const matches = all.filter(({ source, row }) =>
      (!search || row.name.toLowerCase().includes(search) || row.part.toLowerCase().includes(search)) && (!changed || findMove(store.state, source, row.name)));
    const by = (figure) => (a, b) => (b.row[figure] ?? -1) - (a.row[figure] ?? -1);
    if (sort === "name") matches.sort((a, b) => a.row.name.localeCompare(b.row.name, undefined, { numeric: true }));
    else if (sort === "changed") matches.sort((a, b) => Boolean(findMove(store.state, b.source, b.row.name)) - Boolean(findMove(store.state, a.source, a.row.name)));
    else if (sort !== "layer") matches.sort(by(sort));
    const isPinned = ({ source, row }) => pins.includes(keyOf(source, row.name));
    return { all, pinned: matches.filter(isPinned), rest: matches.filter((each) => !isPinned(each)) };
  }

  render() {
    const { all, pinned, rest } = this.rowsShown();
    const groups = pinned.length ? [["pinned", pinned]] : [];
    for (const each of rest) {
      const title = this.view.sort === "layer" ? this.#group(each) : groups.length && pinned.length ? "the others" : "";
      if (groups.at(-1)?.[0] !== title) groups.push([title, []]);
      groups.at(-1)[1].push(each);
    }
    const order = JSON.stringify([groups.map(([title, rows]) => [title, rows.map(({ source, row }) => keyOf(source, row.name))]), this.view]);
    if (order !== this.#order) {
      this.#order = order;
      this.#replace(() => groups.map(([title, rows]) =>
        h("section", { class: "group", "aria-label": title || "directions" },
          title ? h("h2", {}, title) : null,
          h("div", { class: "rows" }, rows.map(({ source, row }) => this.#row(source, row).element)))));
      if (!rest.length && !pinned.length) {
        this.list.replaceChildren(h("p", { class: "quiet" }, all.length ? "No direction matches." : "No directions yet: Discover finds some, Teach learns one."));
      }
    }
    this.changedOnly.setAttribute("aria-pressed", String(this.view.changed));
    this.count.textContent = `${pinned.length + rest.length} of ${all.length}`;
    this.update();
  }

  /** Make the list anew; what had the focus keeps it, or its like in the row that now stands there gets it. */
  #replace(make) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const rows = () => [...this.list.querySelectorAll(".axis")];
    const place = rows().findIndex((row) => row.contains(focused));
    this.list.replaceChildren(...make());  // rows that go into new groups lose the focus
    if (!focused) return;
    const kind = ["name", "number", "more"].find((each) => focused.classList.contains(each));
    const like = rows()[place]?.querySelector(kind ? `.${kind}` : "input[type=range]");
    (this.list.contains(focused) ? focused : like)?.focus({ preventScroll: true });
  }

  #group({ source, row }) {
    const table = this.#tables.get(source);
    const name = store.state.sets.length > 1 ? `${table.title} · ` : "";
    return `${name}${row.part}`;
  }

  #row(source, row) {
    const key = keyOf(source, row.name);
    if (!this.#rows.has(key)) this.#rows.set(key, new Row(this, source, row));
    return this.#rows.get(key);
  }

  #look(change) {
    Object.assign(this.view, change);
    localStorage.setItem("eigenlens.view", JSON.stringify(this.view));
    this.#order = "";
    for (const row of this.#rows.values()) row.refresh();
    this.render();
  }

  pin(source, name) {
    const key = keyOf(source, name);
    const { pins } = this.view;
    this.#look({ pins: pins.includes(key) ? pins.filter((each) => each !== key) : [...pins, key] });
  }

  isPinned(source, name) { return this.view.pins.includes(keyOf(source, name)); }

  zeroAll() { store.set({ moves: [] }); }

  /** Bring every slider to where the state has it. */
  update() {
    const { state } = store;
    const needed = state.sets.some((source) => this.#tables.get(source)?.generator !== state.generator);
    const unshown = state.sets.join("\n") !== this.shownSets;
    this.shownSets = state.sets.join("\n");
    if (needed) this.load();
    else if (unshown) this.render();
    for (const row of [...this.#rows.values(), ...(this.extraRows ?? [])]) row.show(findMove(state, row.source, row.row.name));
    grey(this.reset, state.moves.length ? "" : "Every slider is at zero");
  }
}

class Row {
  #value = 0;
  #mode = "by";

  constructor(owner, source, row) {
    Object.assign(this, { owner, source, row });
    this.digits = row.high - row.low > 40 ? 1 : row.high - row.low > 2 ? 2 : 3;
    this.range = h("input", {
      type: "range", min: String(row.low), max: String(row.high), step: "any", value: "0", "aria-label": row.name,
      oninput: () => this.#drag(Number(this.range.value)), onchange: () => store.commit(),
      onkeydown: (event) => this.#key(event), ondblclick: () => this.zero(),
    });
    this.range.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.number = h("input", {
      class: "number", type: "text", inputmode: "decimal", "aria-label": `${row.name}, typed`,
      onchange: () => this.#typed(), onfocus: () => this.number.select(),
      onkeydown: (event) => { if (event.key === "Escape") { this.#refresh(); this.number.blur(); } },
    });
    this.name = h("button", {
      class: "name", title: `${row.name}: rest here for a strip; F2 renames`, ondblclick: () => this.rename(),
      onkeydown: (event) => { if (event.key === "F2") this.rename(); },
      onclick: () => this.range.focus(),
    }, row.name);
    this.more = h("button", { class: "icon more", "aria-label": `More about ${row.name}`, "aria-haspopup": "menu", onclick: () => this.#menu() }, "⋯");
    this.tag = h("span", { class: "tag" });
    const effect = row.effect === null ? null : h("span", { class: "effect", title: `effect ${shown(row.effect)}: change of a pixel per σ`, style: `--share:${Math.min(1, row.effect / 0.15)}` });
    const facts = [row.quality === null ? null : `quality ${shown(row.quality, 2)}`, row.importance === null ? null : `importance ${shown(row.importance, 2)}`].filter(Boolean);
    this.element = h("div", { class: "axis", role: "group", "aria-label": row.name },
      this.name, effect, this.tag, h("span", { class: "grow" }), this.number, this.more, this.range);
    this.element.title = facts.join(", ");
    const rest = (event) => owner.strip.ask(this, event);
    this.name.addEventListener("pointerenter", rest);
    this.name.addEventListener("focus", rest);
    this.name.addEventListener("pointerleave", () => owner.strip.leave());
    this.name.addEventListener("blur", () => owner.strip.leave());
    this.show(findMove(store.state, source, row.name), true);
  }

  get #perUnit() { return this.owner.view.unit === "effect" && this.row.effect ? this.row.effect : 1; }

  /** Show a move, or none. */
  show(move, always = false) {
    const mode = move?.to === undefined ? "by" : "to";
    const value = move ? move[mode] : 0;
    const per = this.#perUnit;
    if (!always && value === this.#value && mode === this.#mode && this.layers === move?.layers && per === this.per) return;
    Object.assign(this, { layers: move?.layers, per });
    this.#value = value;
    this.#mode = mode;
    this.#refresh();
  }

  refresh() { this.#refresh(); }

  #refresh() {
    const { row } = this;
    const low = Math.min(row.low, this.#value), high = Math.max(row.high, this.#value);
    if (document.activeElement !== this.range || Number(this.range.value) !== this.#value) {
      this.range.min = low;
      this.range.max = high;
      this.range.value = this.#value;
    }
    const percent = (value) => (100 * (value - low)) / (high - low);
    const [from, to] = [percent(0), percent(this.#value)].sort((a, b) => a - b);
    this.range.style.setProperty("--from", `${from}%`);
    this.range.style.setProperty("--to", `${to}%`);
    this.range.style.setProperty("--zero", `${percent(0)}%`);
    this.element.classList.toggle("moved", this.#value !== 0 || this.#mode === "to");
    this.element.classList.toggle("negative", this.#value < 0);
    const text = this.#text();
    if (document.activeElement !== this.number) this.number.value = text;
    this.range.setAttribute("aria-valuetext", `${text} ${this.owner.view.unit === "effect" ? "of effect" : "sigma"}`);
    const part = this.owner.view.sort === "layer" ? "" : row.part;
    this.tag.textContent = [this.#mode === "to" ? "to" : "", this.layers ? `layers ${this.layers}` : part].filter(Boolean).join(" · ");
  }

  #text() {
    const value = this.#value * this.#perUnit;
    return value.toFixed(this.#perUnit === 1 ? this.digits : 3).replace(/^-?0\.?0*$/, "0").replace("-", "−");
  }

  #put(value, commit) {
    const rounded = Number(value.toFixed(this.digits + 1));
    const change = { [this.#mode]: rounded, ...(this.layers ? { layers: this.layers } : {}) };
    store.set({ moves: withMove(store.state.moves, this.source, this.row.name, change) }, { commit });
  }

  #drag(value) {
    const sticks = (this.row.high - this.row.low) * 0.012;  // zero is easy to hit
    this.#put(this.#mode === "by" && Math.abs(value) < sticks ? 0 : value, false);
  }

  #step(by, commit = true) {
    const low = Math.min(this.row.low, this.#value), high = Math.max(this.row.high, this.#value);
    this.#put(Math.min(high, Math.max(low, this.#value + by)), commit);
  }

  #key(event) {
    const small = Math.max(0.05, (this.row.high - this.row.low) / 160);
    const steps = { ArrowRight: small, ArrowUp: small, ArrowLeft: -small, ArrowDown: -small, PageUp: 1, PageDown: -1 };
    if (event.key in steps && !event.ctrlKey && !event.metaKey && !event.altKey) this.#step(steps[event.key] * (event.shiftKey ? 5 : 1), false);
    else if (event.key === "Home") this.#put(this.row.low, true);
    else if (event.key === "End") this.#put(this.row.high, true);
    else if (event.key === "Delete" || event.key === "Backspace" || (event.key === "0" && !event.ctrlKey)) this.zero();
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.#settle();
  }

  #settle = debounced(() => store.commit() || store.dispatchEvent(new CustomEvent("change", { detail: { live: false } })), 250);

  #wheel(event) {
    if (document.activeElement !== this.range) return;  // a page that scrolls is not a slider that moves
    event.preventDefault();
    this.#step((-Math.sign(event.deltaY || event.deltaX) * (this.row.high - this.row.low)) / 80, false);
    this.#settle();
  }

  #typed() {
    const value = Number(this.number.value.replace("−", "-").replace(",", "."));
    if (!Number.isFinite(value) || Math.abs(value) > 1e6) complain(`${this.number.value} is no number`);
    else this.#put(value / this.#perUnit, true);
    this.#refresh();
  }

  zero() { store.set({ moves: withMove(store.state.moves, this.source, this.row.name, null) }); }

  rename() { this.owner.dispatchEvent(new CustomEvent("rename", { detail: this })); }

  /** Replace the name by a field; gives what was typed, or null. */
  askName() {
    return new Promise((resolve) => {
      const field = h("input", { class: "rename", type: "text", value: this.row.name, "aria-label": `New name of ${this.row.name}`, maxlength: "200" });
      let isDone = false;
      const done = (value) => {
        if (isDone) return;
        isDone = true;
        field.replaceWith(this.name);
        this.name.focus();
        resolve(value && value !== this.row.name ? value : null);
      };
      field.onkeydown = (event) => {
        event.stopPropagation();
        if (event.key === "Enter") done(field.value.trim());
        if (event.key === "Escape") done(null);
      };
      field.onblur = () => done(field.value.trim());
      this.name.replaceWith(field);
      field.focus();
      field.select();
    });
  }

  async #toggleMode() {
    if (this.#mode === "to") {
      this.zero();
      return;
    }
    try {
      const moves = withMove(store.state.moves, this.source, this.row.name, null);
      const places = await post("/api/coordinates", { edit: editOf(store.state, { moves }), directions: this.source });
      const change = { to: Number((places[this.row.index] + this.#value).toFixed(this.digits)), ...(this.layers ? { layers: this.layers } : {}) };
      store.set({ moves: withMove(store.state.moves, this.source, this.row.name, change) });
    } catch (error) {
      complain(error);
    }
  }

  #setLayers(text) {
    const layers = text.trim() || undefined;
    const change = { [this.#mode]: this.#value || 1, ...(layers ? { layers } : {}) };
    store.set({ moves: withMove(store.state.moves, this.source, this.row.name, change) });
  }

  #menu() {
    const { row, owner, source } = this;
    const layers = h("input", {
      type: "text", placeholder: row.layers, value: this.layers ?? "", "aria-label": "Layers", size: "8",
      onchange: () => this.#setLayers(layers.value),
    });
    const facts = [["layers", row.layers], ["acts on", row.part], ["effect", shown(row.effect)], ["importance", shown(row.importance)], ["quality", shown(row.quality)], ["σ", shown(row.sigma)],
      ["span", `${shown(row.low)} … ${shown(row.high)}${row.is_measured ? "" : " (not measured)"}`]];
    openMenu(this.more, [
      h("dl", { class: "facts" }, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
      h("label", { class: "row" }, "Layers ", layers),
      { text: this.#mode === "to" ? "Move by a distance" : "Move to a coordinate", act: () => this.#toggleMode(),
        reason: row.is_straight ? "" : "A curved direction has no coordinate" },
      { text: owner.isPinned(source, row.name) ? "Unpin" : "Pin to the top", act: () => owner.pin(source, row.name) },
      { text: "Set to zero", act: () => this.zero() },
      { text: "Rename…", act: () => this.rename() },
      { text: "Turn round", act: () => owner.dispatchEvent(new CustomEvent("flip", { detail: this })) },
      { text: "Delete from the set", act: () => owner.dispatchEvent(new CustomEvent("drop", { detail: this })) },
    ]);
  }
}
