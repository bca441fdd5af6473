// Tables of class "sortable": buttons in the headers sort, a field above filters, menus choose one value of a column.
"use strict";
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  /** "0.812 [0.790, 0.831]" and "< 0.001" sort by their first number; a name that begins with digits is no number. */
  const leading = (text) => {
    const found = text.replace("−", "-").match(/^(?:< )?([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?= \[|$)/);
    return found ? Number(found[1]) : NaN;
  };
  const compare = (a, b) => {
    // empty cells stay at the end whichever way a column is sorted
    const none = (text) => text === "" || text === "–";
    if (none(a) || none(b)) return {order: none(a) - none(b), fixed: true};
    const numbers = [leading(a), leading(b)];
    const both = !numbers.some(Number.isNaN);
    return {order: both ? numbers[0] - numbers[1] : a.localeCompare(b, undefined, {numeric: true}), fixed: false};
  };

  const makeSortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((first, second) => {
          const {order, fixed} = compare(value(first, column), value(second, column));
          return up || fixed ? order : -order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  };

  const makeFilterable = (table) => {
    const bar = document.createElement("div");
    bar.className = "filter";
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "Filter rows";
    field.setAttribute("aria-label", `Filter rows: ${table.dataset.title}`);
    const count = document.createElement("span");
    count.className = "under";
    count.setAttribute("role", "status");
    const rows = [...table.tBodies[0].rows];
    const menus = [...table.tHead.rows[0].cells].flatMap((head, column) => {
      if (head.dataset.menu === undefined) return [];
      const values = [...new Set(rows.map((row) => value(row, column)))];
      if (values.length < 2) return [];
      const menu = document.createElement("select");
      const title = head.textContent.trim();
      menu.setAttribute("aria-label", title);
      menu.append(new Option(`${title}: all`, ""));
      values.forEach((text) => menu.append(new Option(text, text)));
      if (values.includes(head.dataset.menu)) menu.value = head.dataset.menu;
      return [{column, menu}];
    });
    const apply = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const chosen = menus.every(({column, menu}) => menu.value === "" || value(row, column) === menu.value);
        row.hidden = !chosen || !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${rows.length} rows`;
    };
    field.addEventListener("input", apply);
    menus.forEach(({menu}) => menu.addEventListener("change", apply));
    bar.append(field, ...menus.map(({menu}) => menu), count);
    (table.closest(".scroll") ?? table).before(bar);
    apply();
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    // menus take their names from the headers, before these hold buttons
    if (table.dataset.title !== undefined) makeFilterable(table);
    makeSortable(table);
  }
})();
