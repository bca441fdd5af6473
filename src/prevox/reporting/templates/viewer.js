// The volume viewer: three planes of a case, the reference and a run's prediction over them.
// Volumes are bytes, x fastest; x runs from the subject's right to left, y from front to back, z upwards.
"use strict";
(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const find = (name) => root.querySelector(`[data-part="${name}"]`);
  const {cases, labels} = JSON.parse(document.getElementById("volumes").textContent);
  const MISSED = [255, 92, 92], ADDED = [74, 163, 255], OTHER = [255, 214, 64];
  const colours = [[0, 0, 0], ...labels.map(({colour}) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)))];
  // axes are z, y, x = 0, 1, 2; rows of the upright planes run downwards, z upwards
  const planes = [
    {name: "axial", slice: 0, row: 1, column: 2, upright: false},
    {name: "coronal", slice: 1, row: 0, column: 2, upright: true},
    {name: "sagittal", slice: 2, row: 0, column: 1, upright: true},
  ].map((plane) => ({
    ...plane,
    figure: find(plane.name),
    canvas: find(plane.name).querySelector("canvas"),
    slider: find(plane.name).querySelector("input"),
    title: find(plane.name).querySelector("output"),
  }));
  const part = Object.fromEntries(
    ["case", "run", "overlay", "shown", "opacity", "level", "width", "reset", "crosshair", "note", "readout", "legend",
      "failure"].map((name) => [name, find(name)]));
  let volume = null; // {shape, spacing, image, reference, prediction}
  let position = [0, 0, 0];
  let loads = 0;

  const inflate = async (text) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  const number = (value) => {
    const entry = cases[part.case.value];
    const digits = entry.integral ? 0 : Math.max(0, 3 - Math.floor(Math.log10(entry.range[1] - entry.range[0])));
    return value.toFixed(Math.min(8, digits)).replace("-", "−");
  };

  // ---- loading -------------------------------------------------------------------------------------------------
  const load = async (keepPlace) => {
    const own = ++loads; // of two loads under way only the later one is shown
    const entry = cases[part.case.value];
    const run = entry.predictions[part.run.value];
    const same = keepPlace && volume?.entry === entry;
    const [image, reference, prediction] = await Promise.all([
      same ? volume.image : inflate(entry.image),
      same ? volume.reference : inflate(entry.reference),
      inflate(run.labels),
    ]);
    if (own !== loads) return;
    const [z, y, x] = entry.shape;
    volume = {entry, shape: entry.shape, strides: [y * x, x, 1], spacing: entry.spacing, image, reference, prediction};
    if (!same) {
      position = middle();
      resetWindow();
      for (const plane of planes) {
        plane.slider.max = entry.shape[plane.slice] - 1;
        plane.figure.hidden = plane.slice !== 0 && z === 1; // a picture has one plane
        const size = [plane.column, plane.row].map((axis) => entry.shape[axis] * entry.spacing[axis]);
        plane.figure.style.setProperty("--wide", size[0]);
        plane.figure.style.setProperty("--ratio", size[0] / size[1]);
      }
    }
    part.note.textContent = [run.score, entry.note].filter(Boolean).join("; ");
    root.dataset.ready = `${entry.case}/${run.run}`;
    draw();
  };

  /** Where most of the reference (or of the prediction) is, along each axis. */
  const middle = () => {
    const {shape, strides, reference, prediction} = volume;
    const mask = reference.some((label) => label > 0) ? reference : prediction;
    const areas = shape.map((size) => new Uint32Array(size));
    for (let at = 0; at < mask.length; at++) {
      if (mask[at]) strides.forEach((stride, axis) => areas[axis][Math.floor(at / stride) % shape[axis]]++);
    }
    return areas.map((area, axis) => {
      const most = Math.max(...area);
      return most ? area.indexOf(most) : Math.floor(shape[axis] / 2);
    });
  };

  // ---- window: bytes to grey ----------------------------------------------------------------------------------
  const resetWindow = () => {
    const {range: [low, high], window: [dark, bright]} = cases[part.case.value];
    const span = high - low;
    for (const [slider, lowest, highest, start] of [
      [part.level, low, high, (dark + bright) / 2],
      [part.width, span / 255, span, bright - dark],
    ]) {
      slider.min = lowest;
      slider.max = highest;
      slider.step = span / 500;
      slider.value = start;
    }
  };

  const greys = () => {
    const [low, high] = volume.entry.range;
    const width = Number(part.width.value), dark = Number(part.level.value) - width / 2;
    return Uint8ClampedArray.from({length: 256}, (_, byte) => ((low + (byte / 255) * (high - low) - dark) / width) * 255);
  };

  // ---- drawing -------------------------------------------------------------------------------------------------
  let waiting = false;
  const draw = () => {
    if (waiting || !volume) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const grey = greys();
      planes.filter(({figure}) => !figure.hidden).forEach((plane) => drawPlane(plane, grey));
      describe();
    });
  };

  const drawPlane = (plane, grey) => {
    const {shape, strides, image, reference, prediction} = volume;
    const rows = shape[plane.row], columns = shape[plane.column];
    const index = position[plane.slice];
    const at = (row, column) => {
      const upwards = plane.upright ? rows - 1 - row : row;
      return index * strides[plane.slice] + upwards * strides[plane.row] + column * strides[plane.column];
    };
    const {canvas} = plane;
    const box = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(box.width * devicePixelRatio));
    canvas.height = Math.max(1, Math.round(box.height * devicePixelRatio));
    const context = canvas.getContext("2d");
    const paint = (colour, smooth) => {
      const small = new OffscreenCanvas(columns, rows);
      const pixels = new ImageData(columns, rows);
      for (let row = 0, out = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++, out += 4) {
          pixels.data.set(colour(at(row, column)), out);
        }
      }
      small.getContext("2d").putImageData(pixels, 0, 0);
      context.imageSmoothingEnabled = smooth;
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
    };
    paint((voxel) => {
      const shade = grey[image[voxel]];
      return [shade, shade, shade, 255];
    }, true);
    const opacity = Number(part.opacity.value) / 100;
    if (part.shown.checked && opacity > 0) {
      const mode = part.overlay.value;
      const alpha = Math.round(255 * opacity), none = [0, 0, 0, 0];
      if (mode === "disagreement") {
        paint((voxel) => {
          const wanted = reference[voxel], found = prediction[voxel];
          if (wanted === found) return none;
          return [...(found === 0 ? MISSED : wanted === 0 ? ADDED : OTHER), alpha];
        }, false);
      } else {
        const filled = mode === "reference" ? reference : prediction;
        paint((voxel) => (filled[voxel] ? [...colours[filled[voxel]], alpha] : none), false);
        if (mode === "both") outline(context, (row, column) => reference[at(row, column)], rows, columns, opacity);
      }
    }
    if (part.crosshair.checked) crosshair(context, plane, rows, columns);
    plane.slider.value = index;
    plane.slider.setAttribute("aria-valuetext", `${index + 1} of ${shape[plane.slice]}`);
    plane.title.textContent = `${index + 1} / ${shape[plane.slice]}`;
  };

  /** Lines along the edges of voxels where a label ends, in the label's colour. */
  const outline = (context, label, rows, columns, opacity) => {
    const {width, height} = context.canvas;
    const x = (column) => (column * width) / columns, y = (row) => (row * height) / rows;
    const paths = new Map();
    const edge = (one, other, x0, y0, x1, y1) => {
      if (one === other) return;
      for (const value of [one, other]) {
        if (!value) continue;
        if (!paths.has(value)) paths.set(value, new Path2D());
        paths.get(value).moveTo(x0, y0);
        paths.get(value).lineTo(x1, y1);
      }
    };
    for (let row = 0; row <= rows; row++) {
      for (let column = 0; column <= columns; column++) {
        const inside = row < rows && column < columns ? label(row, column) : 0;
        const left = row < rows && column > 0 ? label(row, column - 1) : 0;
        const above = row > 0 && column < columns ? label(row - 1, column) : 0;
        if (row < rows) edge(inside, left, x(column), y(row), x(column), y(row + 1));
        if (column < columns) edge(inside, above, x(column), y(row), x(column + 1), y(row));
      }
    }
    context.lineWidth = 2 * devicePixelRatio;
    context.globalAlpha = Math.min(1, 2 * opacity);
    for (const [value, path] of paths) {
      context.strokeStyle = `rgb(${colours[value].join(" ")})`;
      context.stroke(path);
    }
    context.globalAlpha = 1;
  };

  const crosshair = (context, plane, rows, columns) => {
    const {width, height} = context.canvas;
    const row = plane.upright ? rows - 1 - position[plane.row] : position[plane.row];
    const x = ((position[plane.column] + 0.5) * width) / columns, y = ((row + 0.5) * height) / rows;
    context.strokeStyle = "rgb(255 255 255 / 0.55)";
    context.lineWidth = devicePixelRatio;
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, height);
    context.moveTo(0, y);
    context.lineTo(width, y);
    context.stroke();
  };

  /** What is under the cross-hair, and the colours that are in use. */
  const describe = () => {
    const {strides, entry, image, reference, prediction} = volume;
    const voxel = position.reduce((sum, index, axis) => sum + index * strides[axis], 0);
    const value = entry.range[0] + (image[voxel] / 255) * (entry.range[1] - entry.range[0]);
    const name = (label) => (label ? labels[label - 1].name : "none");
    part.readout.textContent =
      `At the cross-hair: value about ${number(value)}; reference ${name(reference[voxel])}, ` +
      `prediction ${name(prediction[voxel])}. Window ${number(Number(part.level.value))} ± ` +
      `${number(Number(part.width.value) / 2)}.`;
    const rows = part.overlay.value === "disagreement"
      ? [["missed: in the reference only", MISSED], ["added: in the prediction only", ADDED], ["another label", OTHER]]
      : labels.map(({name: text}, at) => [text, colours[at + 1]]);
    part.legend.replaceChildren(...rows.map(([text, colour]) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = `rgb(${colour.join(" ")})`;
      item.append(swatch, text);
      return item;
    }));
  };

  // ---- controls ------------------------------------------------------------------------------------------------
  const go = (axis, index) => {
    position[axis] = Math.min(volume.shape[axis] - 1, Math.max(0, index));
    draw();
  };

  for (const plane of planes) {
    plane.slider.addEventListener("input", () => go(plane.slice, Number(plane.slider.value)));
    plane.canvas.addEventListener("click", (event) => {
      const box = plane.canvas.getBoundingClientRect();
      const rows = volume.shape[plane.row], columns = volume.shape[plane.column];
      const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
      position[plane.column] = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
      go(plane.row, plane.upright ? rows - 1 - row : row);
      plane.slider.focus({preventScroll: true}); // from here arrow keys and the wheel go through the slices
    });
    let turned = 0; // a notch of a wheel is about 100, the swipe of a touch pad comes in many small parts
    plane.canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== plane.slider || event.ctrlKey) return; // the page scrolls until a plane is chosen
      event.preventDefault();
      turned += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : 100 * Math.sign(event.deltaY);
      const slices = Math.trunc(turned / 100);
      turned -= 100 * slices;
      if (slices) go(plane.slice, position[plane.slice] - slices);
    }, {passive: false});
  }

  const fillRuns = () => {
    const kept = part.run.selectedOptions[0]?.textContent;
    part.run.replaceChildren(...cases[part.case.value].predictions.map(({run}, at) => new Option(run, at)));
    const again = [...part.run.options].find(({textContent}) => textContent === kept);
    if (again) part.run.value = again.value;
    part.run.parentElement.hidden = part.run.options.length < 2;
  };

  const failed = (error) => {
    part.failure.hidden = false;
    part.failure.textContent = `The volumes cannot be shown: ${error.message}`;
  };

  part.case.append(...cases.map((entry, at) => new Option(entry.why ? `${entry.case} (${entry.why})` : entry.case, at)));
  part.case.addEventListener("change", () => {
    fillRuns();
    load(false).catch(failed);
  });
  part.run.addEventListener("change", () => load(true).catch(failed));
  for (const control of [part.overlay, part.shown, part.opacity, part.level, part.width, part.crosshair]) {
    control.addEventListener("input", draw);
  }
  part.reset.addEventListener("click", () => {
    resetWindow();
    draw();
  });
  root.addEventListener("keydown", (event) => {
    if (event.key !== "o" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    part.shown.checked = !part.shown.checked;
    draw();
  });
  for (const button of document.querySelectorAll("button[data-case]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      part.case.value = cases.findIndex((entry) => entry.case === button.dataset.case);
      fillRuns();
      part.run.value = cases[part.case.value].predictions.findIndex(({run}) => run === button.dataset.run);
      load(false).catch(failed);
      root.scrollIntoView({block: "start"});
      planes[0].slider.focus({preventScroll: true});
    });
  }
  new ResizeObserver(draw).observe(root);
  root.hidden = false;
  fillRuns();
  if (typeof DecompressionStream === "undefined") failed(new Error("this browser is too old (it lacks DecompressionStream)"));
  else load(false).catch(failed);
})();
