// Everything by keyboard.

import { byId, h } from "./dom.js";
import { store } from "./store.js";

const HELP = [
  ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"], ["B (hold)", "see the picture without the moves"],
  ["N, P, R", "next, previous, random seed"], ["0", "set every slider to zero"], ["S", "take a snapshot"],
  ["/", "search the sliders"], ["1 … 7", "the tools"],
  ["← → on a slider", "a small step; with Shift a larger one"], ["Page up, Page down", "one σ"],
  ["Home, End", "the limits"], ["Delete, double-click", "zero"], ["wheel", "moves the slider that has the focus"], ["F2 on a name", "rename"], ["?", "this page"],
];

export function listen({ transport, sliders, tabs, hold, snapshot }) {
  const dialog = byId("keys");
  dialog.append(h("h2", {}, "Keys"), h("dl", {}, HELP.flatMap(([key, does]) => [h("dt", {}, key), h("dd", {}, does)])),
    h("p", { class: "quiet" }, "For programs: ", h("a", { href: "api.html" }, "all requests"), "."),
    h("form", { method: "dialog" }, h("button", {}, "Close")));
  const help = () => dialog.showModal();
  byId("help").onclick = help;
  const plain = {
    n: () => transport.step(1), p: () => transport.step(-1), r: () => transport.random.click(), 0: () => sliders.zeroAll(),
    "?": help, "/": () => { tabs.open("axes"); sliders.search.focus(); }, s: snapshot,
  };
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("textarea, select, dialog *, input:not([type=range]):not([type=checkbox])");
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !isTyping) {
      event.preventDefault();
      if (event.shiftKey) store.redo();
      else store.undo();
    } else if ((event.ctrlKey || event.metaKey) && event.key === "y" && !isTyping) {
      event.preventDefault();
      store.redo();
    } else if (isTyping || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    } else if (event.key === "b" || event.key === "B") {
      if (!event.repeat) hold(true);
    } else if (/^[1-9]$/.test(event.key)) {
      tabs.openNumber(Number(event.key) - 1);
    } else if (plain[event.key.toLowerCase()]) {
      event.preventDefault();
      plain[event.key.toLowerCase()]();
    }
  });
  document.addEventListener("keyup", (event) => { if (event.key === "b" || event.key === "B") hold(false); });
  addEventListener("blur", () => hold(false));  // another window hears the key come up
}
