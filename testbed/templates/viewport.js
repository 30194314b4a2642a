(function () {
  "use strict";
  function hideUnchecked(box) {
    document.querySelectorAll("#picker input").forEach(function (input) {
      box.querySelectorAll(".session[data-arm='" + input.value + "']").forEach(function (session) {
        session.hidden = !input.checked;
      });
    });
  }
  document.querySelectorAll(".moments").forEach(function (moments) {
    var shown = moments.querySelector(".maps");
    var select = moments.querySelector("select");
    var choices = Array.prototype.slice.call(moments.querySelectorAll("template"));
    if (choices.length < 2) { return; }
    var first = choices[0];
    choices.sort(function (a, b) { return Number(a.dataset.chunk) - Number(b.dataset.chunk); });
    function show(index) {
      var at = (index + choices.length) % choices.length;
      shown.replaceChildren(choices[at].content.cloneNode(true));
      select.value = String(at);
      hideUnchecked(shown);
    }
    choices.forEach(function (choice, index) {
      var option = document.createElement("option");
      option.value = String(index);
      option.textContent = choice.dataset.label;
      select.appendChild(option);
    });
    select.addEventListener("change", function () { show(Number(select.value)); });
    moments.querySelectorAll("button").forEach(function (button) {
      button.addEventListener("click", function () {
        show(Number(select.value) + Number(button.dataset.step));
      });
    });
    moments.querySelector(".still").hidden = true;
    moments.querySelector(".picker").hidden = false;
    show(choices.indexOf(first));
  });
}());
