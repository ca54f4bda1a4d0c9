#compdef kubectl-towline
# zsh completion for kubectl-towline. Load it: source <(kubectl towline completion zsh)
_kubectl_towline() {
    local answer line directive
    local -a candidates
    answer="$(kubectl-towline __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)" || return
    directive="${answer##*:}"
    for line in "${(@f)answer}"; do
        [[ $line == :* ]] && continue
        # Colons belong to _describe.
        line="${line//:/\\:}"
        candidates+=("${line/$'\t'/:}")
    done
    if [[ $directive == 0 ]]; then
        _files
    else
        _describe 'kubectl-towline' candidates
    fi
}
compdef _kubectl_towline kubectl-towline
