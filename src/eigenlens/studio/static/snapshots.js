// Snapshots: states to come back to, kept by this browser.

import { h, button, complain, tell } from "./dom.js";
import { store } from "./store.js";

const KEY = "eigenlens.snapshots";
const MOST = 24;

export class Snapshots {
  constructor(place, { stage, open }) {
    Object.assign(this, { stage, open });
    this.tray = h("div", { class: "thumbs small" });
    this.none = h("p", { class: "quiet" }, "None yet: S, or the button, keeps this state.");
    place.prepend(h("section", {}, h("h2", {}, "Snapshots", button("Keep this", () => this.take(), { class: "small" })), this.none, this.tray));
    this.#show();
  }

  get #kept() {
    try {
      return JSON.parse(localStorage.getItem(KEY)) ?? [];
    } catch {
      return [];
    }
  }

  #keep(list) {
    try {
      localStorage.setItem(KEY, JSON.stringify(list.slice(-MOST)));
    } catch (error) {
      complain(error);
    }
    this.#show();
  }

  take() {
    const small = h("canvas", { width: 72, height: 72 });
    small.getContext("2d").drawImage(this.stage.canvas, 0, 0, 72, 72);
    this.#keep([...this.#kept, { state: store.state, picture: small.toDataURL("image/png") }]);
    tell("snapshot kept");
  }

  #show() {
    const kept = this.#kept;
    this.none.hidden = kept.length > 0;
    this.tray.replaceChildren(...kept.map(({ state, picture }, k) => h("div", { class: "snapshot" },
      h("button", { class: "thumb", "aria-label": `Snapshot ${k + 1}`, onclick: () => this.#restore(state) }, h("img", { src: picture, alt: "" })),
      h("button", { class: "icon forget", "aria-label": `Forget snapshot ${k + 1}`, onclick: () => this.#keep(this.#kept.filter((_, i) => i !== k)) }, "×"))));
  }

  #restore(state) {
    if (state.generator === store.state.generator) store.set(state);
    else this.open(state).catch(complain);
  }
}
