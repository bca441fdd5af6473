// The images of a catalogue: a menu chooses those that break a rule, a field those whose name holds all its words.
"use strict";
(() => {
  const menu = document.getElementById("rule");
  const field = document.getElementById("name");
  const status = document.getElementById("shown");
  const cards = [...document.querySelectorAll(".gallery > li")].map((element) => ({
    element,
    flags: new Set(element.dataset.flags.split(" ").filter(Boolean)),
    excluded: element.dataset.excluded !== undefined,
    name: element.querySelector(".name").textContent.toLowerCase(),
  }));
  const kinds = {
    "": () => true,
    "*": (card) => card.flags.size > 0,
    "-": (card) => card.flags.size === 0,
    "!": (card) => card.excluded,
  };
  const apply = () => {
    const rule = menu.value;
    const fits = kinds[rule] ?? ((card) => card.flags.has(rule));
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const show = fits(card) && words.every((word) => card.name.includes(word));
      card.element.hidden = !show;
      shown += show;
    }
    status.textContent = `${shown} of ${cards.length} images`;
  };
  menu.addEventListener("change", apply);
  field.addEventListener("input", apply);
  for (const link of document.querySelectorAll("[data-rule]")) {
    link.addEventListener("click", () => {
      menu.value = link.dataset.rule;
      field.value = "";
      apply();
    });
  }
  document.getElementById("choice").hidden = false;
  apply();
})();
