# fish completion for kubectl-towline. Load it: kubectl towline completion fish | source
function __kubectl_towline
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l answer (kubectl-towline __complete -- $words[2..-1] "$current" 2>/dev/null)
    if test "$answer[-1]" = ":0"
        __fish_complete_path "$current"
        return
    end
    string match -v -r '^:\d+$' -- $answer
end
complete -c kubectl-towline -f -a '(__kubectl_towline)'
