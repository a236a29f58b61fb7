// Out of the studio: the picture, and how it is made again.

import { h, button, complain, copy, download } from "./dom.js";
import { blob, post } from "./api.js";
import { store, editOf, toHash } from "./store.js";

const fileName = () => `${store.state.generator.split("/").pop()}-${store.state.seed}`;

export class ExportsPage {
  constructor(place) {
    this.shell = h("code", { class: "said", tabindex: "0", "aria-label": "Shell command" });
    this.python = h("code", { class: "said", tabindex: "0", "aria-label": "Python" });
    this.json = h("code", { class: "said", tabindex: "0", "aria-label": "Edit as JSON" });
    const said = (title, code) => h("section", {}, h("h2", {}, title, button("Copy", () => copy(code.textContent), { class: "small", "aria-label": `Copy ${title}` })), code);
    this.files = h("div", { class: "bar" },
      button("PNG", () => this.#picture()),
      button("Edit (JSON)", () => download(new Blob([`${JSON.stringify(editOf(store.state), null, 2)}\n`], { type: "application/json" }), `${fileName()}.json`)));
    place.append(h("h2", {}, "Files"), this.files, said("The same picture at the shell", this.shell), said("In Python", this.python), said("As an Edit", this.json));
  }

  async show() {
    try {
      const { shell, python, edit } = await post("/api/recipe", { edit: editOf(store.state) });
      this.shell.textContent = shell;
      this.python.textContent = python;
      this.json.textContent = JSON.stringify(edit, null, 2);
    } catch (error) {
      complain(error);
    }
  }

  async #picture() {
    try {
      const { blob: picture } = await blob("/api/export", { edit: editOf(store.state), kind: "png" });
      download(picture, `${fileName()}.png`);
    } catch (error) {
      complain(error);
    }
  }
}

export const linkOf = () => location.href.split("#")[0] + toHash(store.state);
