// Breed: two pictures, eight children, and where they come from.

import { h, button, complain, grey } from "./dom.js";
import { post, blob, get } from "./api.js";
import { store, editOf } from "./store.js";
import { tilesOf } from "./gallery.js";

const N = 8;

export class BreedPage {
  #parents = { a: null, b: null };
  #round = 0;
  #shownFor = null;

  constructor(place) {
    const slot = (key, title) => {
      const picture = h("div", { class: "parent" }, h("span", { class: "quiet" }, "none yet"));
      const take = button(`This picture is ${title}`, () => this.#take(key));
      this[key] = picture;
      return h("div", { class: "slot" }, picture, take);
    };
    this.mutation = h("input", { type: "range", class: "plain", min: "0", max: "1", step: "0.01", value: "0.15", "aria-label": "Mutation" });
    this.breed = button("Breed", () => this.#breed(), { class: "main", reason: "Choose two parents first" });
    this.children = h("div", { class: "thumbs eight" });
    this.line = h("div", { class: "lineage" });
    place.append(
      h("p", {}, "Each child takes every coordinate from one parent or the other, and changes it a little."),
      h("div", { class: "bar parents" }, slot("a", "A"), slot("b", "B")),
      h("div", { class: "bar" }, h("label", { class: "grow row" }, "Mutation ", this.mutation), this.breed),
      this.children, h("h2", {}, "Where this picture comes from"), this.line);
    store.on("commit", () => { if (!place.hidden) this.#lineage(); });
  }

  show() { this.#lineage(); }

  #now() { return editOf({ ...store.state, region: null, keep: [] }); }

  async #take(key) {
    this.#parents[key] = this.#now();
    await this.#draw(this[key], this.#parents[key]);
    grey(this.breed, this.#parents.a && this.#parents.b ? "" : "Choose two parents first");
  }

  async #draw(place, edit) {
    try {
      const { blob: picture } = await blob("/api/picture", { edit, largest: 96 });
      const [tile] = await tilesOf(picture, 1, 1);
      place.replaceChildren(tile);
    } catch (error) {
      complain(error);
    }
  }

  async #breed() {
    const { a, b } = this.#parents;
    try {
      const { file } = await post("/api/breed", { a, b, n: N, seed: this.#round++, mutation: Number(this.mutation.value) });
      const edit = { version: 1, generator: a.generator, codes: { file, index: 0 }, moves: [] };
      const { blob: picture } = await blob("/api/picture", { edit, n: N, columns: N, largest: 128 });
      const tiles = await tilesOf(picture, N, N);
      this.children.replaceChildren(...tiles.map((tile, index) => h("button", {
        class: "thumb", "aria-label": `Child ${index + 1}`, onclick: () => store.set({ file, index, moves: [], n: 1 }),
      }, tile)));
    } catch (error) {
      complain(error);
    }
  }

  /** Show the forebears of the picture, generation by generation. */
  async #lineage() {
    const { file, index, seed, generator } = store.state;
    const wanted = JSON.stringify(file === null ? [seed] : [file, index]);
    if (wanted === this.#shownFor) return;
    this.#shownFor = wanted;
    if (!file?.includes("children~")) {
      this.line.replaceChildren(h("p", { class: "quiet" }, file ? "It is a photo's code." : `It was drawn: seed ${seed}.`));
      return;
    }
    const generations = [];
    let files = [file];
    try {
      while (files.length && generations.length < 6) {
        const notes = await Promise.all(files.map((each) => get("/api/file", { source: each.replace(/\.safetensors$/, ".json") })));
        const parents = notes.flatMap((note) => note.parents);
        const unique = [...new Map(parents.map((each) => [JSON.stringify(each), each])).values()].slice(0, 8);
        generations.push(unique);
        files = [...new Set(unique.map((each) => each.codes.file).filter((each) => each?.includes("children~")))];
      }
    } catch (error) {
      complain(error);
    }
    if (wanted !== this.#shownFor) return;
    this.line.replaceChildren(...generations.map((edits, k) => h("div", { class: "generation" },
      h("span", { class: "quiet" }, ["parents", "grandparents"][k] ?? `${k + 1} generations up`),
      h("div", { class: "thumbs small" }, edits.map((edit) => {
        const thumb = h("button", { class: "thumb", "aria-label": "Go to this forebear", onclick: () => store.set({
          generator, n: 1, seed: edit.codes.seed ?? 0, file: edit.codes.file ?? null, index: edit.codes.index ?? 0,
          truncation: edit.codes.truncation ?? 1, moves: edit.moves.filter((move) => store.state.sets.includes(move.directions)),
        }) });
        this.#draw(thumb, edit);
        return thumb;
      })))));
  }
}
