(function () {
  "use strict";
  var traces = Array.prototype.slice.call(document.querySelectorAll("details.trace"));
  var picker = document.getElementById("picker");
  if (!picker || traces.length === 0) { return; }
  var select = picker.querySelector("select");
  traces.forEach(function (trace, index) {
    var option = document.createElement("option");
    option.value = String(index);
    option.textContent = trace.dataset.name;
    select.appendChild(option);
  });
  function show(index) {
    var chosen = (index + traces.length) % traces.length;
    traces.forEach(function (trace, at) {
      trace.hidden = at !== chosen;
      trace.open = at === chosen;
    });
    select.value = String(chosen);
  }
  function follow() {
    traces.forEach(function (trace, index) {
      if ("#" + trace.id === location.hash) {
        show(index);
        trace.scrollIntoView();
      }
    });
  }
  select.addEventListener("change", function () { show(Number(select.value)); });
  picker.querySelectorAll("button").forEach(function (button) {
    button.addEventListener("click", function () {
      show(Number(select.value) + Number(button.dataset.step));
    });
  });
  picker.querySelectorAll("input").forEach(function (box) {
    box.addEventListener("change", function () {
      document.querySelectorAll(".session[data-arm='" + box.value + "']").forEach(function (session) {
        session.hidden = !box.checked;
      });
    });
  });
  window.addEventListener("hashchange", follow);
  picker.hidden = false;
  show(0);
  follow();
}());
